-- Delete the first jobs of a queue.
--
-- KEYS  1 the queue
-- ARGV  1 the queue's name   2 maximum number of ids to remove from the queue
-- Promise: an id leaves the queue in the step that deletes its job, with everything that belongs to
-- it. A job that runs, has ended or waits elsewhere (its id was pushed twice) only loses its entry.
-- What comes next for the limit of a deleted job is woken.
-- Returns the number of ids that were removed, and the number of deleted jobs.

local key, queue, max_jobs = KEYS[1], ARGV[1], tonumber(ARGV[2])
local ENDED = {finished = true, failed = true, stopped = true, canceled = true}
if not fits(key, 'list') then return {0, 0} end
local ids = redis.call('LRANGE', key, 0, max_jobs - 1)
local found = {}

-- The fields of a job that waits here; nil if it does not.
local function read_waiting(id)
  local fields = read_job(id, 'status', 'origin', 'rqjobs_token', 'worker_name', 'rqjobs_unique',
    'rqjobs_failure_group', 'rqjobs_woken', 'rqjobs_limit')
  if not fields or ENDED[fields[1]] then return nil end
  if redis.call('EXISTS', 'rq:job:' .. id) == 0 then return nil end
  if fields[2] and fields[2] ~= queue then return nil end
  if fields[1] ~= 'queued' then
    if is_in_place(id, queue, fields[1]) then return nil end
    if is_held_by_another(id, nil, fields[3], fields[4]) then return nil end
  end
  return fields
end

for _, id in ipairs(ids) do
  local fields = read_waiting(id)
  if fields then found[id] = fields end
end
redis.call('LTRIM', key, #ids, -1)
local deleted, to_wake = 0, {}
for id, fields in pairs(found) do
  if fields[5] then forget_unique(id, fields[5], true) end
  leave_failure_group(id, fields[6])
  local limit = fields[7] and parse_limit(fields[8])
  if limit then to_wake[limit.key] = (to_wake[limit.key] or 0) + 1 end
  local job = 'rq:job:' .. id
  redis.call('DEL', job, job .. ':dependents', 'rq:job::' .. id .. ':dependencies',
    'rq:results:' .. id, 'rqjobs:log:' .. id)
  deleted = deleted + 1
end
for limit_key, number in pairs(to_wake) do wake(limit_key, number) end
return {#ids, deleted}
