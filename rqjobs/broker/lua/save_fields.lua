-- Write fields of a job that is there.
--
-- KEYS  1 job hash
-- ARGV  fields and values
-- Promise: of a job that was deleted or has expired meanwhile no half a hash is made, which nothing would remove.
-- Returns 1, or 0 if there is no such job.

if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
