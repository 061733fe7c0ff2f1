-- Take back every job that a dead worker, or a worker's dead horse, had claimed.
-- All ways back into a queue are listed in transitions.py.
--
-- KEYS  1 rqjobs:claims:<worker>   2 rqjobs:leases   3 rqjobs:process:<worker>
--       4 rq:worker:<worker>   5 rq:workers   then rq:workers:<queue> of each queue
-- ARGV  1 worker   2 the cause: "lease expired"; "process gone" (its processes have provably
--       ended); or "horse died" (reported by the worker itself)
--       3 id of the job that was running, "?" for the first in the claims, "" for none
--       4 number of crashes after which a job fails   5 seconds within which they count
--       6 traceback of such a job   7 RQ's default failure_ttl   8 now, as RQ writes it
--       9 seconds that the running job is delayed, doubled with each crash; 0 puts it at the front
--       10 for "process gone", that process ("<pid>:<start time>"); for "horse died", the worker's
--       process, or ""   11 traceback of a job whose queue's key has the wrong type
-- Promise: each claimed job returns to the front of its queue, in order. The running job's crash is
-- counted; the job then waits in the scheduled set if a delay is given, or fails. A job that was
-- enqueued again since is only removed from the claims. A dead worker's registration is removed in
-- the same step, when its claims are empty.
-- Returns {id, outcome, …} with "requeued", "delayed", "failed" or "ended"; or {"alive"} if the
-- lease was renewed, or the name belongs to another process by now.

local claims, leases, process_key, rq_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local worker, cause, running = ARGV[1], ARGV[2], ARGV[3]
local max_crashes, crash_window, poison_traceback = tonumber(ARGV[4]), ARGV[5], ARGV[6]
local default_ttl, iso, delay, process, no_queue_traceback =
  ARGV[7], ARGV[8], tonumber(ARGV[9]), ARGV[10], ARGV[11]

local function is_alive()
  if cause == 'horse died' then
    local owner = process ~= '' and redis.pcall('HGET', process_key, 'process')
    return type(owner) == 'string' and owner ~= process
  end
  -- A key of the wrong type fails here, before the first write.
  local lease = redis.call('ZSCORE', leases, worker)
  if cause == 'lease expired' then return lease and tonumber(lease) > redis_time() end
  local fields = redis.call('HMGET', process_key, 'pid', 'started')
  return (fields[1] or '') .. ':' .. (fields[2] or '') ~= process
end

local function delay_job(id, queue, crashes)
  unclaim(id, 'scheduled')
  if read_job(id, 'rqjobs_limit')[1] then  -- it does not wait again behind the others of its key
    redis.call('HSET', 'rq:job:' .. id, 'rqjobs_woken', '1')
  end
  local due = redis_time() + delay * 2 ^ (crashes - 1)
  redis.call('ZADD', 'rq:scheduled:' .. queue, due, id)
  redis.call('ZADD', 'rqjobs:crash-backoff:' .. queue, due, id)
  return 'delayed'
end

-- Move a job that was claimed, with a token if it had been given to the worker.
local function move(id, queue, token)
  local crashes = 0
  if id == running and token then crashes = count_crash(id, crash_window) end
  if crashes >= max_crashes then
    fail_job(queue, id, worker, poison_traceback, iso, default_ttl)
    count_event('poison', queue, 1)
    count_total('poison')
    return 'failed'
  end
  if crashes > 0 and delay > 0 and fits('rq:scheduled:' .. queue, 'zset')
      and fits('rqjobs:crash-backoff:' .. queue, 'zset') then
    return delay_job(id, queue, crashes)
  end
  if put_back(queue, id) then return 'requeued' end
  fail_job(queue, id, worker, no_queue_traceback, iso, default_ttl)
  return 'failed'
end

local ids = {}

local function reclaim(id)
  local fields = read_job(id, 'origin', 'status', 'rqjobs_token', 'worker_name') or {}
  local queue, status, token, holder = fields[1], fields[2], fields[3], fields[4]
  local outcome = 'ended'
  if is_held_by_another(id, worker, token, holder) then
    token = nil
  elseif queue and is_active(status) and not is_in_place(id, queue, status) then
    outcome = move(id, queue, token)
    if outcome ~= 'failed' then
      count_event('recovered', queue, 1)
      count_total('recovered:' .. cause)
    end
    -- The first one had begun, so it may not expire.
    if id == ids[1] and token then redis.call('HDEL', 'rq:job:' .. id, 'rqjobs_expires') end
  end
  drop_claim(claims, queue, id, queue and token)
  return outcome
end

local function unregister()
  local slots = redis.pcall('HKEYS', 'rqjobs:slots-of:' .. worker)  -- an error has no elements
  for _, id in ipairs(slots) do free_slot(worker, id) end
  redis.pcall('ZADD', 'rqjobs:retired-workers', string.format('%.3f', redis_time()), worker)
  redis.call('ZREM', leases, worker)
  redis.call('DEL', process_key, rq_key)
  for i = 5, #KEYS do redis.pcall('SREM', KEYS[i], rq_key) end
end

if is_alive() then return {'alive'} end
ids = redis.pcall('LRANGE', claims, 0, -1)
local report = {}
if running == '?' then running = ids[1] end
for i = #ids, 1, -1 do
  report[#report + 1] = ids[i]
  report[#report + 1] = reclaim(ids[i])
end
if cause ~= 'horse died' then unregister() end
return report
