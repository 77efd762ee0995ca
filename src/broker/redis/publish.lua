-- Gives messages of uploads the next offsets, keeps them and publishes them: each in one step.
--
-- In front of this stand the settings: size, ttl and slack in ms, and trim, '=' or '~'.
-- KEYS  of each message: meta (hash), log (stream); of a message with an idempotency key, which comes
--       alone, keys (sorted set) too
-- ARGV  1 the time in ms, 2 source; then of each message: channel, payload up to the reserved member,
--       number, "1" for a milestone; and of one that comes alone version or "", idempotency key
-- Gives for each an error, or {0 published | 1 duplicate | 2 stale | 3 had come already, receivers,
-- offset, epoch}.
--
-- meta has e the epoch, o the last offset, m that of the newest milestone, v the newest version, t
-- when the expiry was set, and for each source the number of its last message. keys has each key
-- behind its epoch, by offset. To call a script costs as much as two of its commands, which is why
-- many messages share a call.
local now, source = ARGV[1], ARGV[2]

local function publish(meta, log, keys, channel, head, number, is_milestone, version_text, key)
  local version = tonumber(version_text or '')
  local had
  if is_milestone and not version then
    had = redis.pcall('HMGET', meta, 'e', 'o', source, 't')
  else
    had = redis.pcall('HMGET', meta, 'e', 'o', source, 't', 'm', 'v')
  end
  if had.err then return had end

  local epoch, offset = had[1], 1
  if epoch then
    offset = had[2] + 1
    if had[3] then
      if tonumber(number) <= tonumber(had[3]) then return { 3, 0, 0, epoch } end
    elseif redis.call('HLEN', meta) > 64 then
      -- Workers come and go while an upload stays. Only a retry needs to know what it is that came.
      for _, field in ipairs(redis.call('HKEYS', meta)) do
        if #field > 1 then redis.call('HDEL', meta, field) end
      end
    end
    if key then
      key = epoch .. key
      local first = redis.call('ZSCORE', keys, key)
      if first then return { 1, 0, tonumber(first), epoch } end
    end
    if version and had[6] and version <= tonumber(had[6]) then return { 2, 0, 0, epoch } end
  else
    -- No other message has this source and number.
    epoch = string.sub(redis.sha1hex(source .. ':' .. number), 1, 16)
    key = key and epoch .. key
    -- What is left of a history whose meta was evicted is no part of this one.
    -- A DEL of nothing would pass for a write, and after one Redis does not look at its memory's limit.
    if redis.pcall('EXISTS', log) == 1 then
      local freed = redis.pcall('DEL', log)
      if type(freed) == 'table' then return freed end
    end
  end

  -- The first write says whether the server takes any; nothing is done until then.
  local at = string.format('%.0f', offset)
  local payload = head .. '"_fanwire":{"epoch":"' .. epoch .. '","offset":' .. at .. '}}'
  local milestone = not is_milestone and tonumber(had[5])
  local apart = milestone and milestone <= offset - size
  local added
  if apart then
    added = redis.pcall('XADD', log, at, 'd', payload)
  else
    added = redis.pcall('XADD', log, 'MAXLEN', trim, size, at, 'd', payload)
  end
  if type(added) == 'table' then return added end
  if apart then
    -- The milestone is kept besides, so what is next to it goes.
    local first, last = string.format('%.0f', milestone + 1), string.format('%.0f', offset - size)
    for _, entry in ipairs(redis.call('XRANGE', log, first, last, 'COUNT', 64)) do
      redis.call('XDEL', log, entry[1])
    end
  end

  -- Of many messages only some set the expiry, and so late that the ttl is kept behind the newest.
  local due = not had[4] or math.abs(now - had[4]) >= slack
  if due then
    redis.call('HSET', meta, 'e', epoch, 'o', at, source, number, 't', now)
  elseif is_milestone then
    redis.call('HSET', meta, 'o', at, source, number, 'm', at)
  else
    redis.call('HSET', meta, 'o', at, source, number)
  end
  if due and is_milestone then redis.call('HSET', meta, 'm', at) end
  if version then redis.call('HSET', meta, 'v', version_text) end
  if key then
    redis.call('ZADD', keys, at, key)
    redis.call('ZREMRANGEBYRANK', keys, 0, -1 - size)
    redis.call('PEXPIRE', keys, ttl + slack)
  end
  if due then
    redis.call('PEXPIRE', meta, ttl + slack)
    redis.call('PEXPIRE', log, ttl + slack)
  end
  local receivers = redis.pcall('PUBLISH', channel, payload)
  if type(receivers) == 'table' then
    -- Its offset is used up: whoever watches is told of the hole by the next message.
    redis.pcall('XDEL', log, at)
    return receivers
  end
  return { 0, receivers, offset, epoch }
end

-- What fails in the middle is that message's failure alone.
local function answer(...)
  local done, answered = pcall(publish, ...)
  if done and not answered.err then return answered end
  local text = type(answered) == 'table' and answered.err or tostring(answered)
  -- Redis 6.2 says where before it says what.
  return { err = string.match(text, '^@user_script: %d+: %-(.*)$') or text }
end

if #KEYS < 4 then
  local is_milestone = ARGV[6] == '1'
  return { answer(KEYS[1], KEYS[2], KEYS[3], ARGV[3], ARGV[4], ARGV[5], is_milestone, ARGV[7], ARGV[8]) }
end
local answers = {}
for i = 1, #KEYS / 2 do
  local a = 4 * i
  answers[i] = answer(KEYS[2 * i - 1], KEYS[2 * i], nil, ARGV[a - 1], ARGV[a], ARGV[a + 1], ARGV[a + 2] == '1')
end
return answers
