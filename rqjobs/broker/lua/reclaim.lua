-- Take back everything that a dead worker, or a dead horse, had claimed.
--
-- KEYS  1 rqjobs:claims:<it>   2 rqjobs:leases   3 rqjobs:process:<it>   4 rq:worker:<it>   5 rq:workers
--       then rq:workers:<queue> of each queue
-- ARGV  1 its name   2 "dead" (its lease must have ended), "gone" (its process is provably not there), or "horse"
--       (asked by the worker itself, whose horse died)   3 the id of the job that was running, "?" for the first in
--       the claims, "" for none   4 deaths after which a job fails   5 seconds in which they count   6 its traceback
--       7 RQ's default failure_ttl   8 now, as RQ writes it   9 seconds that the running job waits, doubled with
--       each death; 0: it goes to the front like the others   10 for "gone", that process: pid, colon, when it started;
--       for "horse", the worker's process, or ""
--       11 traceback of a job whose queue has a key of the wrong type
-- Promise: each claim goes back to the front of its queue, in order, or among the dead letters, or (a job that
-- crashed its horse) into the scheduled set, or nowhere if the job was enqueued again since; a death is counted only for
-- the job that was running; a dead worker is forgotten in the same step, when nothing is left in its hands.
-- Returns {id, outcome, …}: "requeued", "delayed", "failed" or "ended"; or {"alive"} if its lease was renewed, or its
-- name is another process's now.

local claims, name, kind, running = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local lease = redis.call('ZSCORE', KEYS[2], name)
if kind == 'lease expired' and lease and tonumber(lease) > clock() then return {'alive'} end
if kind == 'process gone' then
  local where = redis.call('HMGET', KEYS[3], 'pid', 'started')
  if (where[1] or '') .. ':' .. (where[2] or '') ~= ARGV[10] then return {'alive'} end
end

local process = kind == 'horse died' and ARGV[10] ~= '' and redis.pcall('HGET', KEYS[3], 'process')
if type(process) == 'string' and process ~= ARGV[10] then return {'alive'} end

local ids, report = redis.pcall('LRANGE', claims, 0, -1), {}  -- an error, which has none, if it is no list
if running == '?' then running = ids[1] end
for i = #ids, 1, -1 do
  local id, outcome = ids[i], 'ended'
  local fields = read(id, 'origin', 'status', 'rqjobs_token', 'worker_name') or {}
  local queue = fields[1]
  if is_held_by_another(id, name, fields[3], fields[4]) then
    fields[3] = false
  elseif queue and waits(fields[2]) and not stands(id, queue, fields[2]) then
    local deaths = id == running and fields[3] and count_death(id, ARGV[5]) or 0
    if deaths >= tonumber(ARGV[4]) then
      bury(queue, id, name, ARGV[6], ARGV[8], ARGV[7])
      outcome = 'failed'
    elseif deaths > 0 and tonumber(ARGV[9]) > 0 and fits('rq:scheduled:' .. queue, 'zset')
        and fits('rqjobs:crash-backoff:' .. queue, 'zset') then
      redis.call('HSET', 'rq:job:' .. id, 'status', 'scheduled', 'started_at', '', 'worker_name', '')
      redis.call('HDEL', 'rq:job:' .. id, 'rqjobs_token')
      local due = clock() + tonumber(ARGV[9]) * 2 ^ (deaths - 1)
      redis.call('ZADD', 'rq:scheduled:' .. queue, due, id)
      redis.call('ZADD', 'rqjobs:crash-backoff:' .. queue, due, id)
      outcome = 'delayed'
    elseif put_back(queue, id) then
      outcome = 'requeued'
    else
      bury(queue, id, name, ARGV[11], ARGV[8], ARGV[7])
      outcome = 'failed'
    end
  end
  redis.call('LREM', claims, 1, id)
  if queue and fields[3] then redis.pcall('ZREM', 'rq:wip:' .. queue, id .. ':' .. fields[3]) end
  report[#report + 1] = id
  report[#report + 1] = outcome
end
if kind ~= 'horse died' then
  redis.pcall('ZADD', 'rqjobs:retired-workers', string.format('%.3f', clock()), name)
  redis.call('ZREM', KEYS[2], name)
  redis.call('DEL', KEYS[3], KEYS[4])
  for i = 5, #KEYS do redis.pcall('SREM', KEYS[i], KEYS[4]) end
end
return report
