-- Let the jobs run that waited for a buried one and may run after its failure.
--
-- KEYS  1 rqjobs:waking
-- ARGV  1 id of the buried job   2 now, as RQ writes it   3 default timeout, seconds
-- Promise: a job goes from the deferred set into its queue if it is deferred still, allows failures, and all that it
-- waits for has ended so; the buried one is not asked about again. Asked twice, nothing happens the second time.
-- Returns the ids that were enqueued.

local woken = has_ended(ARGV[1], true) and wake(ARGV[1], ARGV[2], ARGV[3]) or {}
redis.call('SREM', KEYS[1], ARGV[1])
return woken
