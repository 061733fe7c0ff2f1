-- Write which process a worker's new horse is.
--
-- KEYS  1 rqjobs:leases   2 rqjobs:process:<name>
-- ARGV  1 worker's name   2 which process the worker is   3 horse's pid   4 when the horse started
-- Promise: nothing is written for a worker without a lease, nor under a name that belongs to another process.
-- Returns 1, or 0 if nothing was written.

if not redis.call('ZSCORE', KEYS[1], ARGV[1]) or redis.call('HGET', KEYS[2], 'process') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[2], 'horse', ARGV[3], 'horse_started', ARGV[4])
return 1
