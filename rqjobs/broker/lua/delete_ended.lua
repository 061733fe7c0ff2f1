-- Delete ended jobs of one queue, with all that belongs to them.
--
-- ARGV  1 registry: "finished", "canceled", or "failed" for stopped jobs   2 the status that each
--       job must have   3 queue   then the ids
-- Promise: a job that is not in the registry, or has another status or a run in progress, is left
-- alone.
-- Returns the number of deleted jobs.

local registry, wanted_status, queue, deleted = ARGV[1], ARGV[2], ARGV[3], 0

local function delete_ended(id)
  local job, key = 'rq:job:' .. id, 'rq:' .. registry .. ':' .. queue
  if type(redis.pcall('ZSCORE', key, id)) ~= 'string' then return false end
  local fields = read_job(id, 'status', 'origin', 'rqjobs_token', 'rqjobs_unique')
  if fields and fields[1] then
    if fields[1] ~= wanted_status or fields[2] ~= queue or fields[3] then return false end
    if fields[4] then forget_unique(id, fields[4], true) end
  end
  redis.call('DEL', job, job .. ':dependents', 'rq:job::' .. id .. ':dependencies',
    'rq:results:' .. id, 'rqjobs:log:' .. id)
  redis.call('ZREM', key, id)
  redis.pcall('ZREM', 'rqjobs:stopped:' .. queue, id)
  redis.pcall('ZREM', 'rqjobs:canceled-expiry:' .. queue, id)
  return true
end

for i = 4, #ARGV do
  if delete_ended(ARGV[i]) then deleted = deleted + 1 end
end
return deleted
