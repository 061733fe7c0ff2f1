-- Delete failed jobs of a queue.
--
-- ARGV  1 queue   then the ids
-- Promise: a job that was stopped, or has been enqueued again since, is left alone.
-- Returns the number of deleted jobs.

local queue, deleted = ARGV[1], 0
for i = 2, #ARGV do
  local id = ARGV[i]
  local is_listed = type(redis.pcall('ZSCORE', 'rq:failed:' .. queue, id)) == 'string'
  local fields = is_listed and read_job(id, 'status')
  local is_stopped = fields and fields[1] == 'stopped'
  if is_listed and not is_stopped and delete_failed_job(id, queue) then deleted = deleted + 1 end
end
return deleted
