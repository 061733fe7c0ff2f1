-- Remove an id from a queue if it has no job.
--
-- KEYS  1 queue   2 job hash
-- ARGV  1 job id
-- Promise: a job that was enqueued again since stays in its queue.

if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('LREM', KEYS[1], 0, ARGV[1]) end
