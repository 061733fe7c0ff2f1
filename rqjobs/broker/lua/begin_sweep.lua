-- Ask for the turn to sweep, and keep the leases plausible.
--
-- KEYS  1 rqjobs:sweep:lock   2 rqjobs:sweep:last (time of the last sweep)   3 rqjobs:leases
-- ARGV  1 milliseconds for which no other worker sweeps   2 lease, seconds
--       3 "1" to sweep even if the lock is held
-- Promise: after a time in which no lease could be renewed (Redis was down, its time jumped) every
-- lease is extended once before any counts as expired. No lease ends later than one lease from now.
-- Returns "too soon" (another worker has just swept), "leases extended" (no lease counts as expired
-- this time), or "sweep".

local lock, last_key, leases = KEYS[1], KEYS[2], KEYS[3]
local lock_milliseconds, lease, is_forced = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local left = redis.call('PTTL', lock)  -- a lock without an end, or with a later one, is not ours
if not is_forced and left >= 0 and left <= lock_milliseconds then return 'too soon' end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local last = tonumber(redis.pcall('GET', last_key) or '') or 0
local was_quiet = now - last > lease / 2 or last > now + 1
local workers = redis.pcall('ZRANGE', leases, 0, -1, 'WITHSCORES')  -- an error has no elements
redis.call('SET', lock, '1', 'PX', lock_milliseconds)
redis.call('SET', last_key, string.format('%.3f', now))
for i = 1, #workers, 2 do
  local worker, lease_end = workers[i], tonumber(workers[i + 1])
  if was_quiet or lease_end > now + lease then
    redis.call('ZADD', leases, string.format('%.3f', now + lease), worker)
  end
end
if was_quiet then return 'leases extended' end
return 'sweep'
