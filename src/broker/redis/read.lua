-- What is kept of an upload.
--
-- KEYS  1 meta, 2 log
-- ARGV  1 the epoch and 2 the offset after which is asked, or nothing
-- Gives {epoch, last offset, milestone or 0, entries}, or nothing if nothing is kept.
local had = redis.pcall('HMGET', KEYS[1], 'e', 'm')
if had.err then return had end
local last = tonumber(had[1] and redis.call('HGET', KEYS[1], had[1]))
if not last then return false end
local milestone = tonumber(had[2])
local from = milestone or 1
local since = had[1] == ARGV[1] and tonumber(ARGV[2])
if since and since == last then
  return { had[1], last, milestone or 0, {} }
elseif since and since < last then
  from = math.min(since + 1, milestone or since + 1)
end
local entries = redis.pcall('XRANGE', KEYS[2], string.format('%.0f', from) .. '-0', '+')
if entries.err then return entries end
return { had[1], last, milestone or 0, entries }
