-- Gives messages of uploads the next offsets, keeps them and publishes them: each in one step.
--
-- In front of this stand the settings: size, ttl and slack in ms, trim, '=' or '~', and after how many
-- messages that is done.
-- KEYS  of each message: meta (hash), log (stream); of a message with an idempotency key, which comes
--       alone, keys (sorted set) too
-- ARGV  1 source; then of each message: channel, payload, number, what it is, and the offset and epoch
--       that its publisher foresees or "" and ""; and of one that comes alone version or "", idempotency
--       key. Where nothing is foreseen the payload ends before the reserved member. Numbers are times in
--       us that grow from message to message. What it is: "1" for a milestone, "0" for none, and behind
--       that the number of the message that it must not overtake, if that was in an earlier call of the
--       batch, and "@offset:epoch", if the history has to reach that.
-- Gives for each an error, or how many received it, if it is as foreseen, or as a text: 0 published |
-- 1 duplicate | 2 stale | 3 had come already | 4 nothing, for that message is missing; receivers,
-- offset, epoch. A text costs a third of a table, here and to read.
--
-- meta has e the epoch, under the epoch's name the last offset, m that of the newest milestone, v the
-- newest version, and for each source the number of its last message: half a number more if that was passed
-- over as a duplicate or stale, and a quarter less if it was refused. keys has each key behind its epoch, by
-- offset. To call a script costs as much as two of its commands, which is why many messages share a call.
local KEYS, ARGV, type, tonumber, sub = KEYS, ARGV, type, tonumber, string.sub
local call, try, format = redis.call, redis.pcall, string.format
local source = ARGV[1]
-- Uploads whose log is to begin again, and has no expiry yet.
local begins = {}

local function publish(meta, log, keys, channel, head, number, what, version_text, key)
  local is_milestone, version = sub(what, 1, 1) == '1', version_text and tonumber(version_text)
  local had
  if is_milestone and not version then
    had = try('HMGET', meta, 'e', source)
  else
    had = try('HMGET', meta, 'e', source, 'm', 'v')
  end
  if had.err then return had end
  local last = had[1] and call('HGET', meta, had[1])
  local epoch, offset, due = last and had[1], 1, true
  local is_old = false
  if #what > 1 then
    local behind, least, of = string.match(what, '^.(%d*)@?(%d*):?(%x*)$')
    if behind ~= '' and tonumber(had[2] or 0) < tonumber(behind) then return '4 0 0 -' end
    is_old = epoch and of == epoch and tonumber(last) < tonumber(least)
  end

  if epoch then
    offset = last + 1
    if had[2] then
      local now = tonumber(number)
      local since = now - had[2]
      -- What was passed over is looked at again, so that it gets the same answer.
      if since <= 0 and since ~= -0.5 then return '3 0 0 ' .. epoch end
      due = begins[meta] or now % (slack * 1000) < since
    elseif call('HLEN', meta) > 64 then
      -- Workers come and go while an upload stays. Only a retry needs to know what it is that came.
      for _, field in ipairs(call('HKEYS', meta)) do
        if #field > 1 and field ~= epoch then call('HDEL', meta, field) end
      end
    end
    if key then
      local first = call('ZSCORE', keys, epoch .. key)
      if first then
        try('HSET', meta, source, number .. '.5')
        return format('1 0 %d %s', first, epoch)
      end
    end
    if version and had[4] and version <= tonumber(had[4]) then
      try('HSET', meta, source, number .. '.5')
      return '2 0 0 ' .. epoch
    end
    if is_old then
      -- The server has come back with an older copy: its offsets would be given a second time.
      local newest = call('HGET', meta, 'v')
      local freed = try('DEL', meta)
      if type(freed) == 'table' then return freed end
      if newest then call('HSET', meta, 'v', newest) end
      epoch, offset, due, had[3] = false, 1, true, false
    end
  end
  if not epoch then
    -- No other message has this source and number.
    epoch = sub(redis.sha1hex(source .. ':' .. number), 1, 16)
    -- What is left of a history whose meta was evicted is no part of this one.
    -- A DEL of nothing would pass for a write, and after one Redis does not look at its memory's limit.
    if try('EXISTS', log) == 1 then
      local freed = try('DEL', log)
      if type(freed) == 'table' then return freed end
    end
  end

  -- The first write says whether the server takes any; nothing is done until then.
  local at = format('%d', offset)
  local payload = head .. '"_fanwire":{"epoch":"' .. epoch .. '","offset":' .. at .. '}}'
  local milestone = not is_milestone and tonumber(had[3])
  local apart = milestone and milestone <= offset - size
  local added
  if apart or offset % step > 0 then
    added = try('XADD', log, at, 'd', payload)
  else
    added = try('XADD', log, 'MAXLEN', trim, size, at, 'd', payload)
  end
  if type(added) == 'table' then return added end
  if apart then
    -- The milestone is kept besides, so what is next to it goes.
    local first, last = format('%d', milestone + 1), format('%d', offset - size)
    for _, entry in ipairs(call('XRANGE', log, first, last, 'COUNT', 64)) do
      call('XDEL', log, entry[1])
    end
  end

  -- Before anything that a retry is measured by: what was refused has not been.
  local receivers = try('PUBLISH', channel, payload)
  if type(receivers) == 'table' then
    -- Its offset is used up: whoever watches is told of the hole by the next message.
    call('HSET', meta, 'e', epoch, epoch, at)
    call('XDEL', log, at)
    call('PEXPIRE', meta, ttl + slack)
    call('PEXPIRE', log, ttl + slack)
    return receivers
  end

  -- The first one of each span of time sets the expiry, so late that it does for all of the span.
  if due then
    call('HSET', meta, 'e', epoch, epoch, at, source, number)
  elseif is_milestone then
    call('HSET', meta, epoch, at, source, number, 'm', at)
  else
    call('HSET', meta, epoch, at, source, number)
  end
  if due and is_milestone then call('HSET', meta, 'm', at) end
  if version then call('HSET', meta, 'v', version_text) end
  if key then
    call('ZADD', keys, at, epoch .. key)
    call('ZREMRANGEBYRANK', keys, 0, -1 - size)
    call('PEXPIRE', keys, ttl + slack)
  end
  if due then
    call('PEXPIRE', meta, ttl + slack)
    call('PEXPIRE', log, ttl + slack)
  end
  return '0 ' .. receivers .. ' ' .. at .. ' ' .. epoch
end

-- What fails in the middle is that message's failure, and that of those behind it in its upload. Those
-- behind one that found something else than was foreseen will do so too.
local failed, surprised = {}, {}
local function fail(meta, text)
  -- Redis 6.2 says where before it says what.
  failed[meta] = { err = string.match(text, '^@user_script: %d+: %-(.*)$') or text }
  return failed[meta]
end

-- A message is not there after all. Its offset stays used up. Which milestone was the newest one is not
-- known any more, and without one the current state is all that is kept. What came before has come.
local function refuse(meta, log, at, number, is_milestone, refusal)
  try('HSET', meta, source, format('%.2f', tonumber(number) - 0.25))
  if is_milestone then try('HDEL', meta, 'm') end
  try('XDEL', log, at)
  return fail(meta, refusal.err)
end

-- The message is in the log of a history that goes on where it was: that of another epoch, or one that could
-- not be told. To delete the entry is not enough, and servers later than 7.0 do not let XSETID do it. Where
-- that is not allowed, or would take long, the offset is used up.
local function take_out(meta, log, at, other)
  local last = try('HGET', meta, other)
  local entries = size <= 1024 and try('XRANGE', log, '-', '+') or { err = '' }
  if type(last) ~= 'string' or entries.err or type(try('DEL', log)) == 'table' then
    try('XDEL', log, at)
    try('HSET', meta, other, at)
    return
  end
  for _, entry in ipairs(entries) do
    if entry[1] ~= at .. '-0' then try('XADD', log, entry[1], entry[2][1], entry[2][2]) end
  end
  -- Fails where the last one is there.
  if type(try('XADD', log, last, 'd', '')) == 'string' then try('XDEL', log, last) end
  try('PEXPIRE', log, ttl + slack)
end

-- All that is to be done for a message that finds everything as foreseen; if it does not, nothing is.
-- Nothing here raises an error: to call a function so that it may costs as much as this does besides.
local function publish_next(meta, log, channel, payload, number, what, at, epoch)
  if failed[meta] then return failed[meta] end
  -- A log that begins now would take any offset.
  local kept = try('XADD', log, 'NOMKSTREAM', at, 'd', payload)
  if type(kept) ~= 'string' then
    surprised[meta], begins[meta] = true, not kept
    return nil
  end
  local is_milestone, added = what == '1', nil
  if is_milestone then
    added = try('HSET', meta, epoch, at, source, number, 'm', at)
  else
    added = try('HSET', meta, epoch, at, source, number)
  end
  if added ~= 0 then
    if type(added) == 'table' then
      take_out(meta, log, at, epoch)
      return fail(meta, added.err)
    end
    local now = try('HGET', meta, 'e')
    if type(now) == 'table' then return refuse(meta, log, at, number, is_milestone, now) end
    if now ~= epoch then
      -- The history was lost, and perhaps another one has begun.
      try('HDEL', meta, epoch, source, is_milestone and 'm' or source)
      if now then take_out(meta, log, at, now) end
      surprised[meta] = true
      return nil
    end
  end
  local receivers = try('PUBLISH', channel, payload)
  if type(receivers) == 'table' then
    return refuse(meta, log, at, number, is_milestone, receivers)
  end
  return receivers
end

local function answer(meta, ...)
  if failed[meta] then return failed[meta] end
  local done, answered = pcall(publish, meta, ...)
  if done and type(answered) == 'string' then return answered end
  return fail(meta, type(answered) == 'table' and answered.err or tostring(answered))
end

local answers, alone = {}, #KEYS < 4
for i = 1, alone and 1 or #KEYS / 2 do
  local meta, log, a = KEYS[2 * i - 1], KEYS[2 * i], 6 * i - 4
  local channel, payload, number, what = ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3]
  local at, epoch, done = ARGV[a + 4], ARGV[a + 5], nil
  if at ~= '' and not surprised[meta] then
    done = publish_next(meta, log, channel, payload, number, what, at, epoch)
  end
  if not done then
    local head = at == '' and payload or sub(payload, 1, -#at - #epoch - 35)
    local version, key = alone and ARGV[8], alone and ARGV[9]
    done = answer(meta, log, KEYS[3], channel, head, number, what, version, key)
  end
  answers[i] = done
end
return answers
