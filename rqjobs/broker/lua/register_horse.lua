-- Write which process a worker's new horse is.
--
-- KEYS  1 rqjobs:leases   2 rqjobs:process:<worker>
-- ARGV  1 worker   2 the worker's process   3 horse's pid   4 horse's start time
-- Promise: nothing is written for a worker without a lease, or under a name that belongs to another
-- process.
-- Returns 1, or 0 if nothing was written.

local leases, process_key = KEYS[1], KEYS[2]
local worker, process, horse, started = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not redis.call('ZSCORE', leases, worker) then return 0 end
if redis.call('HGET', process_key, 'process') ~= process then return 0 end
redis.call('HSET', process_key, 'horse', horse, 'horse_started', started)
return 1
