-- Gives a message of an upload the next offset, keeps it and publishes it, in one step.
--
-- KEYS  1 meta (hash), 2 log (stream), 3 keys (sorted set: idempotency keys by offset)
-- ARGV  1 channel, 2 payload up to the reserved member, 3 an epoch in case the history is new,
--       4 the time in ms, 5 size, 6 ttl in ms, 7 "1" for a milestone, 8 source, 9 number,
--       10 version or "", 11 idempotency key or nothing
-- Gives {0 published | 1 duplicate | 2 stale | 3 had come already, receivers, offset, epoch}.
--
-- meta has e the epoch, o the last offset, m that of the newest milestone, v the newest version, t
-- when the expiry was set, and for each source the number of its last message.
local meta, log = KEYS[1], KEYS[2]
local source, key, version = 's' .. ARGV[8], ARGV[11], tonumber(ARGV[10])
local now, size, ttl = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local had = redis.pcall('HMGET', meta, 'e', 'o', source, 't', 'm', 'v')
if had.err then return had end
local epoch, offset, milestone = had[1], 1, tonumber(had[5])

if epoch then
  offset = had[2] + 1
  if had[3] then
    if tonumber(ARGV[9]) <= tonumber(had[3]) then return { 3, 0, 0, epoch } end
  elseif redis.call('HLEN', meta) > 64 then
    -- Workers come and go while an upload stays. Only a retry needs to know what it is that came.
    local fields = redis.call('HKEYS', meta)
    for _, field in ipairs(fields) do
      if #field > 1 then redis.call('HDEL', meta, field) end
    end
  end
  if key then
    local first = redis.call('ZSCORE', KEYS[3], key)
    if first then return { 1, 0, tonumber(first), epoch } end
  end
  if version and had[6] and version <= tonumber(had[6]) then return { 2, 0, 0, epoch } end
else
  epoch = ARGV[3]
  -- What is left of a history whose head was evicted is no part of this one.
  local freed = redis.pcall('DEL', log, KEYS[3])
  if type(freed) == 'table' then return freed end
end

-- The first write says whether the server takes any; nothing is done until then.
local at = string.format('%.0f', offset)
local payload = ARGV[2] .. '"_fanwire":{"epoch":"' .. epoch .. '","offset":' .. at .. '}}'
local apart = milestone and ARGV[7] ~= '1' and milestone <= offset - size
local added
if apart then
  added = redis.pcall('XADD', log, at .. '-0', 'd', payload)
else
  added = redis.pcall('XADD', log, 'MAXLEN', '=', ARGV[5], at .. '-0', 'd', payload)
end
if type(added) == 'table' then return added end
local receivers = redis.pcall('PUBLISH', ARGV[1], payload)
if type(receivers) == 'table' then
  redis.call('XDEL', log, at .. '-0')
  return receivers
end
if apart then
  -- The milestone is kept besides, so what is next to it goes.
  local first = string.format('%.0f', milestone + 1) .. '-0'
  local last = string.format('%.0f', offset - size) .. '-0'
  for _, entry in ipairs(redis.call('XRANGE', log, first, last, 'COUNT', 64)) do
    redis.call('XDEL', log, entry[1])
  end
end

local fields = { 'o', at, source, ARGV[9] }
if not had[1] then
  fields[#fields + 1] = 'e'
  fields[#fields + 1] = epoch
end
if ARGV[7] == '1' then
  fields[#fields + 1] = 'm'
  fields[#fields + 1] = at
end
if version then
  fields[#fields + 1] = 'v'
  fields[#fields + 1] = ARGV[10]
end
-- Set anew by the newest of many messages only now and then, and so late that the ttl is kept.
local slack = math.ceil(ttl / 8)
local due = not had[4] or math.abs(now - had[4]) >= slack
if due then
  fields[#fields + 1] = 't'
  fields[#fields + 1] = ARGV[4]
end
redis.call('HSET', meta, unpack(fields))
if key then
  redis.call('ZADD', KEYS[3], at, key)
  redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -1 - size)
end
local life = string.format('%.0f', ttl + slack)
if due then
  redis.call('PEXPIRE', meta, life)
  redis.call('PEXPIRE', log, life)
end
if due or key then redis.call('PEXPIRE', KEYS[3], life) end
return { 0, receivers, offset, epoch }
