-- Gives messages of uploads the next offsets, keeps them and publishes them: each in one step.
--
-- In front of this stand the settings: size, ttl and slack in ms, trim, '=' or '~', and after how many
-- messages that is done.
-- KEYS  of each message: meta (hash), log (stream); of a message with an idempotency key, which comes
--       alone, keys (sorted set) too
-- ARGV  1 source; then of each message: channel, payload up to the reserved member, number, what it is;
--       and of one that comes alone version or "", idempotency key. Numbers are times in us that grow
--       from message to message. What it is: "1" for a milestone, "0" for none, and behind that the
--       number of the message that it must not overtake, if that was in an earlier call of the batch,
--       and "@offset:epoch", if the history has to reach that.
-- Gives for each an error, or as a text: 0 published | 1 duplicate | 2 stale | 3 had come already |
-- 4 nothing, for that message is missing; receivers, offset, epoch. A text costs a third of a table,
-- here and to read.
--
-- meta has e the epoch, o the last offset, m that of the newest milestone, v the newest version, and
-- for each source the number of its last message, with a half behind it if that was passed over as a
-- duplicate or stale. keys has each key behind its epoch, by offset. To
-- call a script costs as much as two of its commands, which is why many messages share a call.
local KEYS, ARGV, type, tonumber, sub = KEYS, ARGV, type, tonumber, string.sub
local call, try, format = redis.call, redis.pcall, string.format
local source = ARGV[1]

local function publish(meta, log, keys, channel, head, number, what, version_text, key)
  local is_milestone, version = sub(what, 1, 1) == '1', version_text and tonumber(version_text)
  local had
  if is_milestone and not version then
    had = try('HMGET', meta, 'e', 'o', source)
  else
    had = try('HMGET', meta, 'e', 'o', source, 'm', 'v')
  end
  if had.err then return had end
  local epoch, offset, due = had[1], 1, true
  local is_old = false
  if #what > 1 then
    local behind, least, of = string.match(what, '^.(%d*)@?(%d*):?(%x*)$')
    if behind ~= '' and tonumber(had[3] or 0) < tonumber(behind) then return '4 0 0 -' end
    is_old = epoch and of == epoch and tonumber(had[2]) < tonumber(least)
  end

  if epoch then
    offset = had[2] + 1
    if had[3] then
      local now = tonumber(number)
      local since = now - had[3]
      -- What was passed over is looked at again, so that it gets the same answer.
      if since <= 0 and since ~= -0.5 then return '3 0 0 ' .. epoch end
      due = now % (slack * 1000) < since
    elseif call('HLEN', meta) > 64 then
      -- Workers come and go while an upload stays. Only a retry needs to know what it is that came.
      for _, field in ipairs(call('HKEYS', meta)) do
        if #field > 1 then call('HDEL', meta, field) end
      end
    end
    if key then
      local first = call('ZSCORE', keys, epoch .. key)
      if first then
        try('HSET', meta, source, number .. '.5')
        return format('1 0 %d %s', first, epoch)
      end
    end
    if version and had[5] and version <= tonumber(had[5]) then
      try('HSET', meta, source, number .. '.5')
      return '2 0 0 ' .. epoch
    end
    if is_old then
      -- The server has come back with an older copy: its offsets would be given a second time.
      local newest = call('HGET', meta, 'v')
      local freed = try('DEL', meta)
      if type(freed) == 'table' then return freed end
      if newest then call('HSET', meta, 'v', newest) end
      epoch, offset, due, had[4] = false, 1, true, false
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
  local milestone = not is_milestone and tonumber(had[4])
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
    call('HSET', meta, 'e', epoch, 'o', at)
    call('XDEL', log, at)
    call('PEXPIRE', meta, ttl + slack)
    call('PEXPIRE', log, ttl + slack)
    return receivers
  end

  -- The first one of each span of time sets the expiry, so late that it does for all of the span.
  if due then
    call('HSET', meta, 'e', epoch, 'o', at, source, number)
  elseif is_milestone then
    call('HSET', meta, 'o', at, source, number, 'm', at)
  else
    call('HSET', meta, 'o', at, source, number)
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

-- What fails in the middle is that message's failure, and that of those behind it in its upload.
local failed = {}
local function answer(meta, ...)
  if failed[meta] then return failed[meta] end
  local done, answered = pcall(publish, meta, ...)
  if done and type(answered) == 'string' then return answered end
  local text = type(answered) == 'table' and answered.err or tostring(answered)
  -- Redis 6.2 says where before it says what.
  failed[meta] = { err = string.match(text, '^@user_script: %d+: %-(.*)$') or text }
  return failed[meta]
end

if #KEYS < 4 then
  return { answer(KEYS[1], KEYS[2], KEYS[3], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]) }
end
local answers = {}
for i = 1, #KEYS / 2 do
  local a = 4 * i - 2
  answers[i] = answer(KEYS[2 * i - 1], KEYS[2 * i], nil, ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3])
end
return answers
