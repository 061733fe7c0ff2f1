-- Move the due jobs of one queue from the scheduled set into the queue.
--
-- KEYS  1 scheduled   2 queue   3 rq:queues   4 rqjobs:crash-backoff:<queue>   5 failed
--       6 rqjobs:scheduled-without-job:<queue>   7 RQ's scheduler lock of the queue
-- ARGV  1 maximum number of jobs   2 now, as RQ writes it   3 default timeout, seconds
--       4 seconds for which an id is kept if it has no job, or one that runs or has ended
--       5 "1": only jobs that are delayed after a crash
--       6 number of due ids to pass over, which earlier calls have kept
--       7 the scheduler that must hold the lock, "" for any
-- An id without a job is kept because plain RQ writes the due time before the job. When the seconds
-- have passed since it was first seen, an id without a job, or with one of another queue, is
-- dropped, and any other job runs. KEYS 4 lists the jobs that crashed, because many jobs that wait
-- for a scheduler may be due before them. The lock matters because plain RQ schedulers, which may
-- hold it, move jobs in several steps.
-- Promise: a due job is in the scheduled set or in the queue, never in both, however many processes
-- promote. A run of the job in progress loses it. A job that plain RQ has enqueued again elsewhere
-- stays there. By Redis's clock no job is early; jobs are moved in the order of their due times. A
-- job that crashed its horse returns to the front. An id whose key is not a job's fails.
-- Returns the number of jobs moved, the number of ids kept, whether more may be due ("1"), now, and
-- the next due time ("" if there is none).

local scheduled, queue_key, queues_key, crash_backoff = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local failed, without_job, lock = KEYS[5], KEYS[6], KEYS[7]
local max_jobs, iso, default_timeout = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local keep_seconds = tonumber(ARGV[4])
local crashed_only, skip, holder = ARGV[5] == '1', ARGV[6], ARGV[7]
local now = redis_time()
if holder ~= '' and redis.call('GET', lock) ~= holder then return {0, 0, '', tostring(now), ''} end
for key, kind in pairs({[queue_key] = 'list', [crash_backoff] = 'zset', [without_job] = 'hash'}) do
  if not fits(key, kind) then
    return redis.error_reply('WRONGTYPE the key ' .. key .. ' is not a ' .. kind)
  end
end
local queue = string.sub(scheduled, 14)
local WAITING = {scheduled = true, queued = true, deferred = true, created = true}
local has_crashes = redis.call('EXISTS', crash_backoff) == 1
local has_without_job = redis.call('EXISTS', without_job) == 1
local moved, kept, done, front, back = 0, 0, {}, {}, {}
local returned = 0  -- jobs that crashed; they were counted when they entered the queue first

-- Whether an id is kept for now, because its enqueuer may still write the job.
local function keep_for_now(id)
  local since = tonumber(has_without_job and redis.call('HGET', without_job, id) or '')
  if not since then
    redis.call('HSET', without_job, id, string.format('%.6f', now))
    redis.call('EXPIRE', without_job, 3600)
  end
  local is_young = not since or since > now - keep_seconds
  if is_young then kept = kept + 1 end
  return is_young
end

local function is_elsewhere(id, status, origin)
  if status == 'scheduled' and origin == queue then return false end
  return is_in_place(id, origin, status)
end

local function promote(id, job, enqueued_at, to_front)
  redis.call('HSET', 'rq:job:' .. id, 'status', 'queued', 'enqueued_at', enqueued_at or iso,
    'timeout', job.timeout or default_timeout)
  if to_front and job.limit then  -- it is at the front of its line too
    redis.call('HSET', 'rq:job:' .. id, 'rqjobs_woken', '1')
  end
  local ttl = ttl_seconds(job.ttl)
  if ttl then redis.call('EXPIRE', 'rq:job:' .. id, ttl) end
  if job.token then
    revoke(id, {queue = job.origin or '', worker = job.worker, token = job.token})
  end
  moved = moved + 1
  if to_front then
    table.insert(front, 1, id)
  else
    back[#back + 1] = id
  end
end

local function read_scheduled(id)
  local fields = read_job(id, 'status', 'enqueue_at_front', 'enqueue_at_front_on_retry', 'ended_at',
    'enqueued_at', 'timeout', 'ttl', 'origin', 'rqjobs_token', 'worker_name', 'rqjobs_limit')
  if not fields then return nil end
  local is_retry_at_front = fields[3] == '1' and fields[4]
  return {status = fields[1], at_front = fields[2] == '1' or is_retry_at_front,
    enqueued_at = fields[5], timeout = fields[6], ttl = fields[7], origin = fields[8],
    token = fields[9], worker = fields[10], limit = fields[11]}
end

-- Move the job of one due id, if it has one. Returns whether the id stays in the scheduled set.
local function handle(id, score)
  local job = read_scheduled(id)
  local has_crashed = has_crashes and redis.call('ZSCORE', crash_backoff, id)
  if crashed_only then score = redis.call('ZSCORE', scheduled, id) end
  score = tonumber(score or '')
  if not score or score > now then return true end  -- rescheduled or moved since its crash
  if not job then  -- not a job's hash
    redis.pcall('ZADD', failed, '+inf', id)
    return false
  end
  if redis.call('HSTRLEN', 'rq:job:' .. id, 'data') == 0 then return keep_for_now(id) end
  if job.status == 'canceled' or is_elsewhere(id, job.status, job.origin) then return false end
  if not WAITING[job.status] and keep_for_now(id) then return true end
  if WAITING[job.status] or job.origin == queue then
    -- A job that crashed was in the queue already, so it keeps its place and its time.
    if has_crashed then returned = returned + 1 end
    promote(id, job, has_crashed and job.enqueued_at, has_crashed or job.at_front)
  end
  return false
end

local moment = string.format('%.6f', now)
local source, offset = scheduled, skip
if crashed_only then
  source = crash_backoff
  offset = 0
end
local due = redis.call('ZRANGEBYSCORE', source, '-inf', moment, 'WITHSCORES',
  'LIMIT', offset, max_jobs)
for i = 1, #due, 2 do
  local id = due[i]
  if not handle(id, due[i + 1]) then
    done[#done + 1] = id
    if has_without_job then redis.call('HDEL', without_job, id) end
  end
  if has_crashes then redis.call('ZREM', crash_backoff, id) end
end
-- Both calls below of unpack are bounded by the maximum number of jobs.
if #back > 0 then redis.call('RPUSH', queue_key, unpack(back)) end
for _, id in ipairs(front) do redis.call('LPUSH', queue_key, id) end
if moved > 0 then redis.pcall('SADD', queues_key, queue_key) end
if moved > returned then count_event('enqueued', queue, moved - returned, now) end
if #done > 0 then redis.call('ZREM', scheduled, unpack(done)) end
local later = redis.call('ZRANGEBYSCORE', scheduled, '(' .. moment, '+inf', 'WITHSCORES',
  'LIMIT', 0, 1)
return {moved, kept, #due == 2 * max_jobs and '1' or '', moment, later[2] or ''}
