-- Ask whether this is the moment to sweep, and keep the leases honest.
--
-- KEYS  1 rqjobs:sweep:lock (the lock)   2 rqjobs:sweep:last (when the last sweep was)   3 rqjobs:leases
-- ARGV  1 milliseconds for which nobody else sweeps   2 lease, seconds   3 "1" to sweep whatever the lock says
-- Promise: after a time in which nobody could renew a lease (Redis was away, its clock jumped) every lease is
-- extended once before any is held to have expired; no lease reaches further than one lease from now.
-- Returns "too soon" (another worker has just swept), "leases extended" (no lease counts as expired this time), or "sweep".

local left = redis.call('PTTL', KEYS[1])  -- a lock without an end, or with one later than ours have, is nobody's
if ARGV[3] ~= '1' and left >= 0 and left <= tonumber(ARGV[1]) then return 'too soon' end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local lease = tonumber(ARGV[2])
local last = tonumber(redis.pcall('GET', KEYS[2]) or '') or 0
local quiet = now - last > lease / 2 or last > now + 1
local workers = redis.pcall('ZRANGE', KEYS[3], 0, -1, 'WITHSCORES')  -- an error, which has none, if it is no sorted set
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
redis.call('SET', KEYS[2], string.format('%.3f', now))
for i = 1, #workers, 2 do
  if quiet or tonumber(workers[i + 1]) > now + lease then
    redis.call('ZADD', KEYS[3], string.format('%.3f', now + lease), workers[i])
  end
end
return quiet and 'leases extended' or 'sweep'
