-- Drop logs whose job is gone: plain RQ deletes a job without its log.
--
-- ARGV  the ids of the jobs
-- Promise: the log of a job that exists stays.
-- Returns the number of dropped logs.

local dropped = 0
for _, id in ipairs(ARGV) do
  if redis.call('EXISTS', 'rq:job:' .. id) == 0 then
    dropped = dropped + redis.call('DEL', 'rqjobs:log:' .. id)
  end
end
return dropped
