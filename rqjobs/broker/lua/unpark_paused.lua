-- Put jobs that wait for a resumed function back into their queues.
--
-- KEYS  1 rqjobs:paused   2 rqjobs:paused-jobs:<function>   3 rqjobs:paused-jobs
-- ARGV  1 function   2 maximum number of jobs
-- Promise: a job leaves the function's list for the front of its queue in one step. The last ones
-- are moved first, so that all of them return in order. Jobs that wait no longer (they were
-- canceled, deleted or enqueued again) are dropped from the list. If the function is paused again,
-- nothing is done.
-- Returns the number of jobs moved, and whether more are left ("1").

local paused, waiting, functions = KEYS[1], KEYS[2], KEYS[3]
local name, max_jobs = ARGV[1], tonumber(ARGV[2])
if redis.pcall('HEXISTS', paused, 'function:' .. name) == 1 then return {0, ''} end
make_fit(waiting, 'list')

-- Returns false if the job has to stay where it is.
local function move(id)
  local fields = read_job(id, 'status', 'origin', 'rqjobs_paused', 'rqjobs_limit')
  if not fields or fields[1] ~= 'deferred' or fields[3] ~= name
      or not is_in_place(id, fields[2], 'deferred') then
    return true
  end
  local queue_key = 'rq:queue:' .. fields[2]
  if not fits(queue_key, 'list') then return false end
  redis.call('HSET', 'rq:job:' .. id, 'status', 'queued')
  redis.call('HDEL', 'rq:job:' .. id, 'rqjobs_paused')
  if fields[4] then redis.call('HSET', 'rq:job:' .. id, 'rqjobs_woken', '1') end  -- it was first
  redis.call('LPUSH', queue_key, id)
  redis.pcall('SADD', 'rq:queues', queue_key)
  redis.call('ZREM', 'rq:deferred:' .. fields[2], id)
  return true
end

local moved = 0
while moved < max_jobs do
  local id = redis.call('LINDEX', waiting, -1)
  if not id then
    redis.pcall('SREM', functions, name)
    return {moved, ''}
  end
  if not move(id) then return {moved, ''} end
  redis.call('RPOP', waiting)
  moved = moved + 1
end
return {moved, '1'}
