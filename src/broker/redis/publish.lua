-- Gives a message of an upload the next offset, keeps it and publishes it, in one step.
--
-- In front of this stand the settings: size, ttl and slack in ms, and trim, '=' or '~'.
-- KEYS  1 meta (hash), 2 log (stream), 3 keys (sorted set) if there is an idempotency key
-- ARGV  1 channel, 2 payload up to the reserved member, 3 the time in ms, 4 source, 5 number,
--       6 "1" for a milestone, 7 version or "" or nothing, 8 idempotency key or nothing
-- Gives {0 published | 1 duplicate | 2 stale | 3 had come already, receivers, offset, epoch}.
--
-- meta has e the epoch, o the last offset, m that of the newest milestone, v the newest version, t
-- when the expiry was set, and for each source the number of its last message. keys has each key
-- behind its epoch, by offset. Two thirds of the time go to four commands and their arguments.
local meta, log, source, number = KEYS[1], KEYS[2], ARGV[4], ARGV[5]
local is_milestone, version, key = ARGV[6] == '1', tonumber(ARGV[7] or ''), ARGV[8]
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
    local first = redis.call('ZSCORE', KEYS[3], key)
    if first then return { 1, 0, tonumber(first), epoch } end
  end
  if version and had[6] and version <= tonumber(had[6]) then return { 2, 0, 0, epoch } end
else
  -- No other message has this source and number.
  epoch = string.sub(redis.sha1hex(source .. ':' .. number), 1, 16)
  key = key and epoch .. key
  -- What is left of a history whose meta was evicted is no part of this one.
  local freed = redis.pcall('DEL', log)
  if type(freed) == 'table' then return freed end
end

-- The first write says whether the server takes any; nothing is done until then.
local at = string.format('%.0f', offset)
local payload = ARGV[2] .. '"_fanwire":{"epoch":"' .. epoch .. '","offset":' .. at .. '}}'
local milestone = not is_milestone and tonumber(had[5])
local apart = milestone and milestone <= offset - size
local added
if apart then
  added = redis.pcall('XADD', log, at, 'd', payload)
else
  added = redis.pcall('XADD', log, 'MAXLEN', trim, size, at, 'd', payload)
end
if type(added) == 'table' then return added end
local receivers = redis.pcall('PUBLISH', ARGV[1], payload)
if type(receivers) == 'table' then
  redis.call('XDEL', log, at)
  return receivers
end
if apart then
  -- The milestone is kept besides, so what is next to it goes.
  local first, last = string.format('%.0f', milestone + 1), string.format('%.0f', offset - size)
  for _, entry in ipairs(redis.call('XRANGE', log, first, last, 'COUNT', 64)) do
    redis.call('XDEL', log, entry[1])
  end
end

-- Of many messages only some set the expiry, and so late that the ttl is kept behind the newest.
local due = not had[4] or math.abs(ARGV[3] - had[4]) >= slack
if due then
  redis.call('HSET', meta, 'e', epoch, 'o', at, source, number, 't', ARGV[3])
elseif is_milestone then
  redis.call('HSET', meta, 'o', at, source, number, 'm', at)
else
  redis.call('HSET', meta, 'o', at, source, number)
end
if due and is_milestone then redis.call('HSET', meta, 'm', at) end
if version then redis.call('HSET', meta, 'v', ARGV[7]) end
if key then
  redis.call('ZADD', KEYS[3], at, key)
  redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -1 - size)
  redis.call('PEXPIRE', KEYS[3], ttl + slack)
end
if due then
  redis.call('PEXPIRE', meta, ttl + slack)
  redis.call('PEXPIRE', log, ttl + slack)
end
return { 0, receivers, offset, epoch }
