-- Put one job that plain RQ has lost back at the front of its queue.
-- All ways back into a queue are listed in transitions.py.
--
-- KEYS  1 intermediate   2 scheduled   3 deferred   4 wip   5 queue   6 executions
--       7 execution hash   8 rqjobs:leases   9 rq:worker:<owner>
-- ARGV  1 where it was found: "wip", "intermediate", or "stray" (in no place)   2 job id
--       3 its member of wip   4 owner   5 queue's name   6 number of crashes after which it fails
--       7 seconds within which they count   8 traceback of such a job   9 RQ's default failure_ttl
--       10 now, as RQ writes it   11 for a stray, "1" if it was enqueued after its last end
-- Promise: the job is moved only if it is still where it was found and its owner is still dead. It
-- is never in two places. A crash is counted only for a job that had started. A stray among the
-- ended jobs has ended, unless it was enqueued again since: a stale save() has overwritten its
-- status, which is corrected.
-- Returns "requeued" or "failed"; or why nothing was moved: "moved", "alive", "gone", "ended",
-- "placed".

local intermediate, scheduled, deferred, wip = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local queue_key, executions, execution = KEYS[5], KEYS[6], KEYS[7]
local leases, owner_key = KEYS[8], KEYS[9]
local found, id, member, owner, queue = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local max_crashes, crash_window, poison_traceback = tonumber(ARGV[6]), ARGV[7], ARGV[8]
local default_ttl, iso, is_enqueued_again = ARGV[9], ARGV[10], ARGV[11] == '1'

local function is_running()
  for _, entry in ipairs(redis.call('ZRANGE', wip, 0, -1)) do
    if string.sub(entry, 1, #id + 1) == id .. ':' then return true end
  end
  return false
end

local function is_elsewhere()
  return redis.call('ZSCORE', scheduled, id) or redis.call('ZSCORE', deferred, id)
    or redis.call('LPOS', queue_key, id)
end

local function is_claimed()
  for _, worker in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
    if redis.call('LPOS', 'rqjobs:claims:' .. worker, id) then return true end
  end
end

-- "moved" or "alive" if the job is no longer where it was found, or its owner lives.
local function changed_since_found()
  if found == 'wip' then
    if not redis.call('ZSCORE', wip, member) then return 'moved' end
    if owner == '' then return nil end
    local lease = redis.call('ZSCORE', leases, owner)
    if lease and tonumber(lease) > redis_time() then return 'alive' end
    if not lease and redis.call('EXISTS', owner_key) == 1 then return 'alive' end
  elseif found == 'intermediate' then
    if not redis.call('LPOS', intermediate, id) or is_running() then return 'moved' end
  elseif is_running() or redis.call('LPOS', intermediate, id) or is_elsewhere() or is_claimed() then
    return 'moved'
  end
end

-- The registry of ended jobs that lists a stray; nil if the stray has not ended.
local function ended_registry()
  if found ~= 'stray' or is_enqueued_again then return nil end
  for _, registry in ipairs({'failed', 'canceled', 'finished'}) do
    if redis.call('ZSCORE', 'rq:' .. registry .. ':' .. queue, id) then return registry end
  end
end

local function recover()
  local fields = read_job(id, 'data', 'status')
  if not fields or not (fields[1] or fields[2]) then return 'gone' end
  if not is_active(fields[2]) and not is_parked(id, fields[2]) then return 'ended' end
  if is_elsewhere() then return 'placed' end
  local registry = ended_registry()
  if registry then
    redis.call('HSET', 'rq:job:' .. id, 'status', registry)
    return 'ended'
  end
  if found == 'wip' and fields[2] == 'started' and count_crash(id, crash_window) >= max_crashes then
    fail_job(queue, id, owner, poison_traceback, iso, default_ttl)
    count_event('poison', queue, 1)
    count_total('poison')
    return 'failed'
  end
  put_back(queue, id)  -- the queue's key was read, so its type is right
  redis.call('HDEL', 'rq:job:' .. id, 'rqjobs_waits_for', 'rqjobs_paused')
  count_event('recovered', queue, 1)
  count_total('recovered:' .. found)
  return 'requeued'
end

local change = changed_since_found()
if change then return change end
local outcome = recover()
redis.pcall('ZREM', wip, member)
redis.pcall('LREM', intermediate, 0, id)
if found == 'wip' then
  redis.pcall('ZREM', executions, string.sub(member, #id + 2))
  redis.call('DEL', execution)
end
return outcome
