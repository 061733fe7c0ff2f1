-- Take those scheduler locks that are free, and renew those that are ours.
--
-- KEYS  the locks
-- ARGV  1 who asks   2 milliseconds that a lock lasts   3 the longest that somebody else's may last, milliseconds
-- Promise: each lock has one owner at a time.
-- Returns the places, from 1, of the locks that are ours now.

local held = {}
for i, key in ipairs(KEYS) do
  local owner = redis.pcall('GET', key)  -- an error if somebody else wrote there
  local left = redis.call('PTTL', key)  -- a lock without an end, or with one later than a lock's may be, is nobody's
  if not owner or owner == ARGV[1] or left == -1 or left > tonumber(ARGV[3]) then
    redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
    held[#held + 1] = i
  end
end
return held
