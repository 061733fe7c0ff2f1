-- Functions of the policies. Those that a script uses are put in front of it, behind those of
-- common.lua.

-- Unique keys: the hash rqjobs:unique names the job of each key, as "<id>", or, after the end of a
-- job with `keep`, as "<id> <Unix time until which the key is taken>". The hash of the named job
-- decides whether the key is taken, so a key needs no release and no expiry.

local MAX_KEPT = 366 * 24 * 3600  -- seconds; as in policies/unique.py

-- The id in the entry of a unique key, and its time or ''; nil if there is no entry.
local function unique_entry(key)
  local entry = redis.pcall('HGET', 'rqjobs:unique', key)
  if type(entry) == 'string' then return string.match(entry, '^(%S+) ?(%S*)$') end
end

-- The job that an entry names and its state: "waits", "runs", "started" (it runs, and its key is
-- free until it waits again), or "kept" (it has ended); nil if the entry has no meaning any more.
local function unique_job(key)
  local id, kept_until = unique_entry(key)
  if not id then return nil end
  if kept_until ~= '' then
    local left = (tonumber(kept_until) or 0) - redis_time()
    if left > 0 and left <= MAX_KEPT then return {id = id, state = 'kept'} end
    return nil
  end
  local fields = read_job(id, 'rqjobs_unique', 'status', 'rqjobs_until', 'rqjobs_token',
    'worker_name')
  if not fields or fields[1] ~= key then return nil end
  if fields[2] == 'started' or is_held_by_another(id, nil, fields[4], fields[5]) then
    return {id = id, state = fields[3] == 'started' and 'started' or 'runs'}
  end
  if is_active(fields[2]) or fields[2] == 'deferred' then return {id = id, state = 'waits'} end
end

-- The job because of which no other job of this key may be enqueued or run; nil if the key is free.
local function unique_holder(key)
  local job = unique_job(key)
  if job and job.state ~= 'started' then return job end
end

-- Remove the entry of a unique key if it names this job. `kept`: also if the job has ended.
local function forget_unique(id, key, kept)
  local holder, kept_until = unique_entry(key)
  if holder == id and (kept or kept_until == '') then redis.call('HDEL', 'rqjobs:unique', key) end
end

-- The job has ended for good: its key is free, or kept for some seconds.
local function end_unique(id, key, keep)
  if not tonumber(keep or '') then return forget_unique(id, key) end
  if unique_entry(key) == id then
    redis.call('HSET', 'rqjobs:unique', key, string.format('%s %.3f', id, redis_time() + keep))
  end
end

-- Keep the result of a finished job with its flow: the jobs after it may run long after the result
-- of its own has expired. The flow expires together with its last job.
local function keep_flow_result(id, place, result)
  local flow, position, total, ends = string.match(place, '^(%S+) (%d+) (%d+) (%d+)')
  local key = flow and 'rqjobs:flow:' .. flow
  if not flow or redis.call('EXISTS', key) == 0 then return end
  if type(redis.pcall('HSET', key, id, result or '')) == 'table' then return end  -- the wrong type
  local is_last = ends == '1' and tonumber(position) == total - 1
  if is_last or redis.call('HLEN', key) > tonumber(total) then
    expire_with('rq:job:' .. id, key)
    expire_with('rq:job:' .. id, 'rqjobs:flow-jobs:' .. flow)
  end
end

-- Free what a job has taken by its policies. It has ended for good. A canceled job keeps no key.
-- `result` is that of a finished job.
function end_policies(id, result)
  local fields = read_job(id, 'rqjobs_unique', 'rqjobs_keep', 'status', 'rqjobs_ending',
    'rqjobs_flow')
  if not fields then return end
  if fields[5] and fields[3] == 'finished' then keep_flow_result(id, fields[5], result) end
  if not fields[1] then return end
  local is_canceled = fields[3] == 'canceled' and not fields[4]
  end_unique(id, fields[1], not is_canceled and fields[2])
end

-- Expiry. Count the seconds of a job's rqjobs_expires from `moment`. The field is "+<seconds>" at
-- first, and "<Unix time>+<seconds>" then; "<Unix time>" alone stays.
local function start_expiry(id, stored, moment)
  local seconds = string.match(stored, '%+([%d.]+)$')
  if tonumber(seconds or '') then
    redis.call('HSET', 'rq:job:' .. id, 'rqjobs_expires',
      string.format('%.3f+%s', moment + tonumber(seconds), seconds))
  end
end

-- End a job that has not begun. RQ counts it as canceled; `ending` ("expired") says why, and
-- `reason` is stored as RQ stores a traceback. RQ never removes a canceled job from its registry,
-- but this one is kept as long as a failed one. So further endings remove those of the queue that
-- are over.
local function end_unrun(queue, id, worker, ending, reason, iso, default_ttl)
  local job, results = 'rq:job:' .. id, 'rq:results:' .. id
  local registry, expiry = 'rq:canceled:' .. queue, 'rqjobs:canceled-expiry:' .. queue
  local now = redis_time()
  local failure_ttl = (read_job(id, 'failure_ttl') or {})[1]
  local kept = ttl_seconds(failure_ttl) or tonumber(default_ttl)
  redis.call('HSET', job, 'status', 'canceled', 'ended_at', iso, 'origin', queue,
    'rqjobs_ending', ending)
  redis.call('HDEL', job, 'rqjobs_token')
  count_total(ending)
  redis.call('PERSIST', job)
  if failure_ttl ~= '-1' then redis.call('EXPIRE', job, kept) end
  redis.pcall('XADD', results, 'MAXLEN', '~', 10, '*', 'type', 3, 'worker_name', worker,
    'exc_string', reason)
  expire_with(job, results)
  expire_with(job, job .. ':dependents')
  redis.pcall('ZADD', registry, string.format('%d', now), id)
  if failure_ttl ~= '-1' then redis.pcall('ZADD', expiry, string.format('%d', now + kept), id) end
  for _, old in ipairs(redis.pcall('ZRANGEBYSCORE', expiry, '-inf', now, 'LIMIT', 0, 10)) do
    if redis.call('EXISTS', 'rq:job:' .. old) == 0 then redis.pcall('ZREM', registry, old) end
    redis.pcall('ZREM', expiry, old)
  end
  end_policies(id)
  count_event(ending == 'expired' and ending or 'canceled', queue, 1, now)
  note_unfinished(id)
end

-- Limits. A job with a limit takes a slot of its key when it is claimed, and the slot is free when
-- the job leaves the claims. A job that waits is in RQ's deferred registry, so that RQ's own cancel
-- and delete work, and in order in the list rqjobs:waiting:<key>. A free slot wakes the first one.
-- A woken job has no slot yet; it comes before the waiting ones when it is claimed.

-- The limit of a job by its field: jobs at a time and seconds for each start (0: no limit), burst,
-- key. Nil if it has none, or one with longer numbers than ours.
local function parse_limit(field)
  if not field then return nil end
  local jobs, seconds, burst, key = string.match(field, '^(%d+) (%d+%.%d+) (%d+) (.+)$')
  if not key or #jobs > 9 or #seconds > 16 or #burst > 9 then return nil end
  return {jobs = tonumber(jobs), seconds = tonumber(seconds), burst = tonumber(burst), key = key}
end

-- Rename a key of the wrong type out of the way, as a sweep does.
local function make_fit(key, wanted)
  if not fits(key, wanted) then redis.call('RENAME', key, 'rqjobs:odd:' .. key) end
end

local function full_again(key)
  local moment = redis.pcall('GET', 'rqjobs:rate:' .. key)
  moment = tonumber(type(moment) == 'string' and moment or '')
  return moment == moment and moment or 0  -- a foreign program may have written "nan"
end

-- When the bucket has a token for the next start; a time in the past if it has one now. A full
-- bucket has `burst` tokens. `ahead`: starts that are on their way.
local function token_time(limit, ahead)
  local now = redis_time()
  local full = math.max(full_again(limit.key), now) + (ahead or 0) * limit.seconds
  -- No time beyond an empty bucket is ours, after a change of the rate or of Redis's clock.
  return math.min(full, now + limit.burst * limit.seconds) - (limit.burst - 1) * limit.seconds
end

local function has_free_slot(limit, ahead)
  local held = limit.jobs > 0 and redis.pcall('HLEN', 'rqjobs:slots:' .. limit.key)
  return type(held) ~= 'number' or held + (ahead or 0) < limit.jobs
end

-- Whether one more job of this limit may start now. `ahead`: starts that are on their way.
local function has_room(limit, ahead)
  if not has_free_slot(limit, ahead) then return false end
  return limit.seconds == 0 or token_time(limit, ahead) <= redis_time()
end

local function has_slot(worker, id, key)
  return redis.pcall('HGET', 'rqjobs:slots-of:' .. worker, id) == key
end

local function take_slot(worker, id, limit)
  local slots, of_worker = 'rqjobs:slots:' .. limit.key, 'rqjobs:slots-of:' .. worker
  make_fit(slots, 'hash')
  make_fit(of_worker, 'hash')
  redis.call('HSET', of_worker, id, limit.key)
  redis.call('HSET', slots, id, worker)
  if limit.seconds == 0 then return end
  local now = redis_time()
  local full = math.min(math.max(full_again(limit.key), now), now + limit.burst * limit.seconds)
  full = full + limit.seconds
  redis.call('SET', 'rqjobs:rate:' .. limit.key, string.format('%.6f', full), 'PX',
    math.min(math.ceil((full - now) * 1000), 10 ^ 12) + 1000)
end

local ranks = nil

-- In a claim: the queues of the worker (KEYS 3 and so on) -> their positions in its order. Empty if
-- it takes them in turns.
local function queue_ranks(worker)
  if ranks then return ranks end
  ranks = {}
  if redis.pcall('HGET', 'rqjobs:process:' .. worker, 'in_turns') ~= '1' then
    for i = 3, #KEYS do ranks[string.sub(KEYS[i], 10)] = i end
  end
  return ranks
end

local pivots = {}  -- in a claim: a list and a queue -> the job before which others of the queue come

-- Put a job into the list of those that wait for a key: behind the others of its queue and of the
-- queues that the worker takes first, or, `to_front`, before the others of its queue. `order`: the
-- worker's queues -> their positions. Of other queues the order of arrival counts.
local function add_waiting(waiting, id, queue, to_front, order)
  local function comes_behind(index)  -- whether the job at this index comes behind the new one
    local other = redis.call('LINDEX', waiting, index)
    local mine, theirs = order[queue], order[(read_job(other, 'origin') or {})[1] or '']
    if not mine or not theirs or mine == theirs then return to_front, other end
    return theirs > mine, other
  end
  local place = waiting .. ' ' .. queue
  local pivot = not to_front and pivots[place]
  if pivot and redis.call('LINSERT', waiting, 'BEFORE', pivot, id) > 0 then return end
  local first, last = 0, redis.call('LLEN', waiting)
  if last == 0 or not comes_behind(last - 1) then return redis.call('RPUSH', waiting, id) end
  while first < last do
    local middle = math.floor((first + last) / 2)
    local is_behind, other = comes_behind(middle)
    if is_behind then
      last, pivot = middle, other
    else
      first = middle + 1
    end
  end
  redis.call('LINSERT', waiting, 'BEFORE', pivot, id)
  if not to_front then pivots[place] = pivot end
end

-- Let a job wait for `key`, in the deferred registry of its queue. The caller removes it from its
-- place. `to_front`, `order`: as in `add_waiting`.
local function park(id, queue, key, to_front, order)
  local deferred, waiting = 'rq:deferred:' .. queue, 'rqjobs:waiting:' .. key
  make_fit(deferred, 'zset')
  make_fit(waiting, 'list')
  make_fit('rqjobs:waiting-keys', 'set')
  redis.call('HSET', 'rq:job:' .. id, 'status', 'deferred', 'rqjobs_waits_for', key)
  redis.call('ZADD', deferred, string.format('%d', redis_time()), id)
  add_waiting(waiting, id, queue, to_front, order)
  redis.call('SADD', 'rqjobs:waiting-keys', key)
  count_total('limit-waits')
end

-- Put a woken job near the front of its queue. Woken jobs and others take turns there, so that
-- neither hold up the others: it stands behind the first other job that no woken job follows.
local function insert_woken(queue_key, id)
  local ids = redis.call('LRANGE', queue_key, 0, 49)
  local is_woken = {}
  for i, other in ipairs(ids) do
    is_woken[i] = redis.pcall('HGET', 'rq:job:' .. other, 'rqjobs_woken') == '1'
    if i > 1 and not is_woken[i] and not is_woken[i - 1] then
      return redis.call('LINSERT', queue_key, 'BEFORE', other, id)
    end
  end
  if #ids < 50 then return redis.call('RPUSH', queue_key, id) end
  return redis.call('LINSERT', queue_key, 'AFTER', ids[#ids], id)
end

-- The waiting job of an entry of rqjobs:waiting:<key>; nil if it waits no longer.
local function waiting_job(id, key)
  local fields = read_job(id, 'status', 'origin', 'rqjobs_waits_for', 'rqjobs_limit')
  if fields and fields[1] == 'deferred' and fields[2] and fields[3] == key
      and redis.pcall('ZSCORE', 'rq:deferred:' .. fields[2], id) then
    return {id = id, queue = fields[2], limit = parse_limit(fields[4])}
  end
end

-- Whether workers claim from a queue now: it has one, and is not paused.
local function is_served(queue)
  local workers = redis.pcall('SCARD', 'rq:workers:' .. queue)
  return type(workers) == 'number' and workers > 0
    and redis.pcall('HEXISTS', 'rqjobs:paused', 'queue:' .. queue) ~= 1
end

-- The waiting job to wake: the first one, or, if nobody would claim that, the first of another
-- queue, among so many that other clients are not held up.
local function next_of(first, key)
  if is_served(first.queue) then return first end
  local served = {[first.queue] = false}
  for _, id in ipairs(redis.call('LRANGE', 'rqjobs:waiting:' .. key, 1, 200)) do
    local job = waiting_job(id, key)
    if job then
      if served[job.queue] == nil then served[job.queue] = is_served(job.queue) end
      if served[job.queue] then return job end
    end
  end
  return first
end

local MAX_DROPPED = 5000  -- entries that one call drops; the next call or sweep goes on

-- The first job in the line of a key. Entries of jobs that wait no longer are dropped.
local function first_in_line(key)
  local waiting = 'rqjobs:waiting:' .. key
  for _ = 1, MAX_DROPPED do
    local id = redis.pcall('LINDEX', waiting, 0)
    if type(id) ~= 'string' then
      redis.pcall('SREM', 'rqjobs:waiting-keys', key)
      redis.pcall('ZREM', 'rqjobs:rate-due', key)
      redis.pcall('HDEL', 'rqjobs:last-woken', key)
      return nil
    end
    local job = waiting_job(id, key)
    if job then return job end
    redis.call('LPOP', waiting)
  end
end

-- In a claim: whether all jobs that wait for a key are of queues that the worker takes after `queue`.
local function is_before_waiting(queue, key, worker)
  local first = first_in_line(key)
  if not first then return true end
  local mine, theirs = queue_ranks(worker)[queue], queue_ranks(worker)[first.queue]
  return mine and theirs and theirs > mine
end

-- The job to wake next for a key.
local function first_waiting(key)
  local job = first_in_line(key)
  return job and next_of(job, key)
end

-- Move a waiting job of a key into its queue. False if the queue's key has the wrong type.
local function unpark(job, key, to_front)
  local queue_key = 'rq:queue:' .. job.queue
  if not fits(queue_key, 'list') then return false end
  redis.call('HSET', 'rq:job:' .. job.id, 'status', 'queued', 'rqjobs_woken', '1')
  redis.call('HDEL', 'rq:job:' .. job.id, 'rqjobs_waits_for')
  if to_front then
    redis.call('LPUSH', queue_key, job.id)
  else
    insert_woken(queue_key, job.id)
  end
  redis.call('ZREM', 'rq:deferred:' .. job.queue, job.id)
  redis.call('LREM', 'rqjobs:waiting:' .. key, 1, job.id)
  redis.pcall('HSET', 'rqjobs:last-woken', key, job.id)
  return true
end

-- Note when the first job that waits for a key can have a token. One that waits for a slot is woken
-- by that slot.
local function note_token_time(key, limit, ahead)
  if limit.seconds == 0 then return end
  make_fit('rqjobs:rate-due', 'zset')
  if not has_free_slot(limit, ahead) then
    redis.call('ZREM', 'rqjobs:rate-due', key)
    return
  end
  local due = string.format('%.6f', math.max(token_time(limit, ahead), redis_time()))
  redis.call('ZADD', 'rqjobs:rate-due', due, key)
  redis.pcall('PUBLISH', 'rqjobs:rate-wakeup', due)
end

-- Wake jobs that wait for a key, as many as its limit lets start now, and at most `max_jobs`. The
-- scheduler wakes the next one when there is a token. Returns the number of woken jobs.
local function wake(key, max_jobs)
  local woken = 0
  local job = first_waiting(key)
  while job and job.limit and woken < max_jobs and has_room(job.limit, woken) do
    if not unpark(job, key) then return woken end
    woken = woken + 1
    job = first_waiting(key)
  end
  if job and job.limit then note_token_time(key, job.limit, woken) end
  return woken
end

-- Free the slot of a job that leaves the claims of `worker`, and wake the next one of its key.
function free_slot(worker, id)
  local key = redis.pcall('HGET', 'rqjobs:slots-of:' .. worker, id)
  if type(key) ~= 'string' then return end
  redis.call('HDEL', 'rqjobs:slots-of:' .. worker, id)
  if redis.pcall('HGET', 'rqjobs:slots:' .. key, id) == worker then
    redis.call('HDEL', 'rqjobs:slots:' .. key, id)
  end
  wake(key, 1)
end

-- Failed jobs are grouped by function and error. A group counts its failures of the last 60 minutes
-- and the last 168 hours, in one field for each, "<minute>:<count>" or "<hour>:<count>". A field is
-- used again after that time, so the hash is bounded. So is the number of groups: a program can
-- write jobs with any number of function names.
local MAX_FAILURE_GROUPS = 1000

local function next_count(stored, period)
  local of, count = string.match(stored or '', '^(%d+):(%d+)$')
  if tonumber(of or '') ~= period then count = 0 end
  return string.format('%d:%d', period, count + 1)
end

-- Count a failure in its group, and add the job to the group if it still is a failed job. `words`
-- are lines: the group's id, the function, the error, and the message.
local function count_failure(id, words)
  local group, name, reason, message =
    string.match(words, '^([^\n]*)\n([^\n]*)\n([^\n]*)\n(.*)$')
  local groups, now = 'rqjobs:failure-groups', redis_time()
  local is_known = type(redis.pcall('ZSCORE', groups, group)) == 'string'
  local number = not is_known and redis.pcall('ZCARD', groups)
  if type(number) == 'number' and number >= MAX_FAILURE_GROUPS then
    group, name, reason = 'other', 'other functions', 'other'
  end
  local key, minute, hour = 'rqjobs:failure-group:' .. group, math.floor(now / 60),
    math.floor(now / 3600)
  local minute_field, hour_field = 'm' .. minute % 60, 'h' .. hour % 168
  local before = redis.pcall('HMGET', key, minute_field, hour_field, 'total', 'first')
  if before.err then return end
  local moment = string.format('%.3f', now)
  local total = string.format('%.0f', (tonumber(before[3] or '') or 0) + 1)
  redis.call('HSET', key, 'function', name, 'error', reason, 'message', message, 'last', moment,
    'first', before[4] or moment, 'total', total, minute_field, next_count(before[1], minute),
    hour_field, next_count(before[2], hour))
  redis.pcall('ZADD', groups, moment, group)
  local fields = read_job(id, 'status', 'rqjobs_failure_group')
  if not fields or fields[1] ~= 'failed' then return end
  if fields[2] ~= group then leave_failure_group(id, fields[2]) end
  redis.pcall('ZADD', 'rqjobs:failure-group-jobs:' .. group, moment, id)
  redis.call('HSET', 'rq:job:' .. id, 'rqjobs_failure_group', group)
end

-- Delete a failed or stopped job of this queue, with everything that belongs to it. False if the
-- job was enqueued again, by plain RQ: then only its entry among the failed jobs is removed.
local function delete_failed_job(id, queue)
  local job, fields = 'rq:job:' .. id, read_job(id, 'status', 'origin', 'rqjobs_token',
    'rqjobs_failure_group', 'rqjobs_unique')
  redis.pcall('ZREM', 'rq:failed:' .. queue, id)
  redis.pcall('ZREM', 'rqjobs:stopped:' .. queue, id)
  if fields then
    local has_ended = fields[1] == 'failed' or fields[1] == 'stopped'
    if fields[3] or not has_ended or fields[2] ~= queue then return false end
    if fields[4] then redis.pcall('ZREM', 'rqjobs:failure-group-jobs:' .. fields[4], id) end
    if fields[5] then forget_unique(id, fields[5], true) end
  end
  redis.call('DEL', job, job .. ':dependents', 'rq:job::' .. id .. ':dependencies',
    'rq:results:' .. id, 'rqjobs:log:' .. id)
  return true
end
