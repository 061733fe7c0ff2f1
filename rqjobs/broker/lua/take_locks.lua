-- Take the scheduler locks that are free, and renew those that the caller holds.
--
-- KEYS  the locks
-- ARGV  1 the caller   2 milliseconds that a lock lasts
--       3 the longest that another scheduler's lock may last, milliseconds
-- Promise: each lock has one owner at a time.
-- Returns the positions, from 1, of the locks that the caller holds now.

local caller, lock_milliseconds, max_milliseconds = ARGV[1], ARGV[2], tonumber(ARGV[3])
local held = {}
for i, key in ipairs(KEYS) do
  local owner = redis.pcall('GET', key)  -- an error if the key has the wrong type
  local left = redis.call('PTTL', key)
  local is_foreign = left == -1 or left > max_milliseconds  -- no scheduler has written that
  if not owner or owner == caller or is_foreign then
    redis.call('SET', key, caller, 'PX', lock_milliseconds)
    held[#held + 1] = i
  end
end
return held
