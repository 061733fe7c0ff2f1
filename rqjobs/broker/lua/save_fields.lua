-- Write fields of an existing job.
--
-- KEYS  1 job hash
-- ARGV  fields and values
-- Promise: for a job that was deleted or has expired nothing is written. A partial hash would never
-- be removed.
-- Returns 1, or 0 if there is no such job.

if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
