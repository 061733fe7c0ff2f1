-- Remove an id from a queue, or from another list of ids, if it has no job.
--
-- KEYS  1 the list   2 job hash
-- ARGV  1 job id
-- Promise: a job that was enqueued again since stays in it.

if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('LREM', KEYS[1], 0, ARGV[1]) end
