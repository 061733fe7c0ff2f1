-- Functions that several scripts share. Those that a script uses are put in front of it
-- (`scripts.py`). A script learns a job's id and queue only while it runs, so it builds keys itself
-- (and needs one Redis server, not a Redis Cluster).
--
-- Full memory: the first write of every move is one that Redis refuses when its memory is full
-- (HSET, LMOVE; LREM and ZREM are always accepted, because they free memory). A refused script has
-- therefore done nothing.
--
-- Wrong types: Lua does not roll back, so no script may fail after its first write. Keys that a
-- move needs are checked before (`fits`). Keys that others only look at (rq:wip, rq:queues,
-- registries of ended jobs) are written with `pcall`, and may fail. An error that `pcall` returns
-- has no elements, so a loop over it does nothing.
--
-- Sizes: Lua's stack holds about 7,900 words. `unpack` is used only for tables that are bounded
-- well below that.

-- Set by policies.lua, in the scripts that contain it. Those for jobs without policies do not: each
-- call of a script defines all of its functions.
local free_slot, end_policies

local function redis_time()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

-- Count `number` events of a queue in this minute, for the pages and the metrics (`counters.py` lists
-- the kinds). A count never fails a script: nothing is counted if its key has the wrong type. A
-- program can write jobs with any number of queue names, so the number of fields is bounded: further
-- ones count for the queue "". `seconds`: Redis's time, if the script knows it.
local function count_event(kind, queue, number, seconds)
  local key = string.format('rqjobs:counts:%d', (seconds or redis.call('TIME')[1]) / 60)
  local field = kind .. ':' .. queue
  if redis.pcall('HINCRBY', key, field, number) ~= number then return end
  -- The field is new.
  redis.pcall('EXPIRE', key, 7200)
  if redis.pcall('HLEN', key) > 512 and queue ~= '' then
    redis.pcall('HDEL', key, field)
    redis.pcall('HINCRBY', key, kind .. ':', number)
  end
end

-- The row of the outbox whose change a script makes: its id, when it was read (Unix seconds), the
-- seconds for which it may be moved after that, and when its mark is dropped. They are the last four
-- words, which are removed. Nil without `outbox`. Then the reason if it may not be moved.
local function take_row(outbox)
  if not outbox then return nil end
  local first = #ARGV - 3
  local row = {key = outbox, id = ARGV[first], dropped_at = ARGV[first + 3]}
  local latest = ARGV[first + 1] + ARGV[first + 2]
  for _ = 1, 4 do table.remove(ARGV) end
  if redis.call('ZSCORE', outbox, row.id) then return row, 'already moved' end
  if redis_time() > latest then return row, 'read too long ago' end
  return row
end

local function mark_row(row)
  if row then redis.call('ZADD', row.key, row.dropped_at, row.id) end
end

-- Fields of a job's hash, false for an empty one; nil if the key has the wrong type.
local function read_job(id, ...)
  local fields = redis.pcall('HMGET', 'rq:job:' .. id, ...)
  if fields.err then return nil end
  for i, field in ipairs(fields) do
    if field == '' then fields[i] = false end
  end
  return fields
end

-- Entries of a job's log behind `last`, in order, of so many bytes together. A longer one is left
-- out; none of ours is. Then the id of the last entry that was looked at, and whether there are more.
local function log_entries(log, last, max_entries, max_bytes)
  local entries, bytes_left = {}, max_bytes
  for _ = 1, max_entries do
    local entry = redis.pcall('XRANGE', log, '(' .. last, '+', 'COUNT', 1)[1]
    if not entry then return entries, last, false end
    local bytes = 0
    for _, word in ipairs(entry[2]) do bytes = bytes + #word end
    if bytes <= max_bytes then
      if bytes > bytes_left then break end
      bytes_left = bytes_left - bytes
      entries[#entries + 1] = entry
    end
    last = entry[1]
  end
  return entries, last, true
end

-- Whether a key has this type, or does not exist.
local function fits(key, wanted)
  local kind = redis.call('TYPE', key).ok
  return kind == wanted or kind == 'none'
end

-- A time to live in whole seconds; nil if Redis would not accept `value`.
local function ttl_seconds(value)
  local seconds = tonumber(value or '')
  if seconds and seconds >= 1 and seconds < 2 ^ 31 then return math.floor(seconds) end
end

-- Whether a job with this status waits or runs.
local function is_active(status)
  return status == 'queued' or status == 'started' or status == 'scheduled'
end

-- Whether a job waits for a limit or for a paused function: it is deferred, but not behind a job.
local function is_parked(id, status)
  local fields = status == 'deferred' and read_job(id, 'rqjobs_waits_for', 'rqjobs_paused')
  return fields and (fields[1] or fields[2])
end

local function set_members(key)
  local ids = redis.pcall('SMEMBERS', key)
  return ids.err and {} or ids
end

-- Remove a job from a worker's claims, and the run with this token from RQ's registry. Its slot is
-- free then.
local function drop_claim(claims, queue, id, token)
  redis.pcall('LREM', claims, 1, id)
  if token then redis.pcall('ZREM', 'rq:wip:' .. queue, id .. ':' .. token) end
  if free_slot then free_slot(string.sub(claims, 15), id) end
end

-- Let a key that belongs to a job expire together with the job's hash.
local function expire_with(job, key)
  local milliseconds = redis.call('PTTL', job)
  if milliseconds > 0 then
    redis.call('PEXPIRE', key, milliseconds)
  elseif milliseconds == -1 then
    redis.call('PERSIST', key)
  else
    redis.call('DEL', key)
  end
end

-- An id has one life: enqueueing it again, by any means, ends the run in progress. A script that
-- puts a job into a place reads its `placement` first, writes the hash, and then calls `retire`
-- with that placement. Plain RQ clients do not. Their jobs are noticed at the next claim, promotion
-- or settlement: the status is not "started", and the job `is_in_place` by its status. (A stale
-- save() of a plain RQ client changes only the status.)

-- The place of a job and the worker that runs it, by its hash; nil if there is no such job.
local function placement(id)
  local fields = read_job(id, 'origin', 'status', 'worker_name', 'rqjobs_token', 'rqjobs_unique',
    'rqjobs_failure_group')
  if fields and (fields[1] or fields[2] or fields[4]) then
    return {queue = fields[1] or '', status = fields[2], worker = fields[3], token = fields[4],
      unique_key = fields[5], failure_group = fields[6]}
  end
end

-- Remove the job from its group of failed jobs. The counts of the group stay.
local function leave_failure_group(id, group)
  if not group then return end
  redis.pcall('ZREM', 'rqjobs:failure-group-jobs:' .. group, id)
  redis.call('HDEL', 'rq:job:' .. id, 'rqjobs_failure_group')
end

-- Whether a job really is in the place that its status names.
local function is_in_place(id, queue, status)
  local found
  if status == 'queued' then
    found = queue and redis.pcall('LPOS', 'rq:queue:' .. queue, id)
  elseif status == 'scheduled' or status == 'deferred' then
    found = queue and redis.pcall('ZSCORE', 'rq:' .. status .. ':' .. queue, id)
  end
  return type(found) == 'number' or type(found) == 'string'
end

-- Take the job away from the worker that runs it, if one does.
local function revoke(id, before)
  if not before.token then return end
  redis.call('HDEL', 'rq:job:' .. id, 'rqjobs_token')
  drop_claim('rqjobs:claims:' .. (before.worker or ''), before.queue, id, before.token)
end

local function remove_from_registries(id, queue, ...)
  for _, registry in ipairs({...}) do
    redis.pcall('ZREM', 'rq:' .. registry .. ':' .. queue, id)
  end
end

-- Remove the job from its place, from the registries of ended jobs, and from its worker.
local function retire(id, before)
  revoke(id, before)
  if before.status == 'queued' then redis.pcall('LREM', 'rq:queue:' .. before.queue, 0, id) end
  remove_from_registries(id, before.queue, 'scheduled', 'deferred', 'finished', 'failed',
    'canceled')
  for _, set in ipairs({'crash-backoff', 'stopped'}) do
    redis.pcall('ZREM', 'rqjobs:' .. set .. ':' .. before.queue, id)
  end
  redis.call('HDEL', 'rq:job:' .. id, 'rqjobs_due')
  leave_failure_group(id, before.failure_group)
end

-- Whether a worker other than `me` has claimed the job.
local function is_held_by_another(id, me, token, worker)
  return token and worker and worker ~= me
    and type(redis.pcall('LPOS', 'rqjobs:claims:' .. worker, id)) == 'number'
end

-- Drop the claim of a run whose outcome is refused. The claim of the job's next run stays, if the
-- same worker has it. `fields`: as `refusal` reads them.
local function drop_refused(claims, queue, id, token, fields)
  redis.pcall('ZREM', 'rq:wip:' .. queue, id .. ':' .. token)
  local current, status, origin, worker = fields[1], fields[3], fields[4], fields[5]
  local next_is_here = current and worker == string.sub(claims, 15)
  if not current and status == 'queued' then
    next_is_here = not is_in_place(id, origin, status)  -- a blocking pop has delivered it
  end
  if not next_is_here then
    redis.pcall('LREM', claims, 0, id)
    if free_slot then free_slot(string.sub(claims, 15), id) end
  elseif type(redis.pcall('LPOS', claims, id, 'RANK', 2)) == 'number' then
    redis.call('LREM', claims, 1, id)
  end
end

-- Why this token may not settle the job: "gone", "already" or "refused". If it may, nil; whether
-- the job was canceled while it ran; its unique key and the seconds for which that is kept; and
-- whether it has a log.
local function refusal(claims, queue, id, token)
  local fields = read_job(id, 'rqjobs_token', 'rqjobs_settled_token', 'status', 'origin',
    'worker_name', 'rqjobs_unique', 'rqjobs_keep', 'rqjobs_log')
  if not fields or (not fields[1] and not fields[3]) then
    drop_claim(claims, queue, id, token)
    return 'gone'
  end
  if fields[1] == token then
    if not is_in_place(id, fields[4], fields[3]) then
      return nil, fields[3] == 'canceled', fields[6], fields[7], fields[8]
    end
    redis.call('HDEL', 'rq:job:' .. id, 'rqjobs_token')  -- a plain RQ client has enqueued it again
    fields[1] = false
  elseif fields[2] == token then
    return 'already'
  end
  drop_refused(claims, queue, id, token, fields)
  return 'refused'
end

-- Note the token that has settled the job, and drop its claim.
local function mark_settled(claims, queue, id, token)
  redis.call('HSET', 'rq:job:' .. id, 'rqjobs_settled_token', token, 'rqjobs_token', '')
  drop_claim(claims, queue, id, token)
end

-- Write the job as waiting again with this status, and as claimed by no worker.
local function unclaim(id, status)
  redis.call('HSET', 'rq:job:' .. id, 'status', status, 'started_at', '', 'worker_name', '')
  redis.call('HDEL', 'rq:job:' .. id, 'rqjobs_token')
end

-- Put the job back at the front of its queue, as if it had never been claimed. False, with nothing
-- done, if the queue's key has the wrong type.
local function put_back(queue, id)
  if not fits('rq:queue:' .. queue, 'list') then return false end
  unclaim(id, 'queued')
  local fields = read_job(id, 'ttl', 'rqjobs_limit')
  if fields[2] then redis.call('HSET', 'rq:job:' .. id, 'rqjobs_woken', '1') end  -- it was first
  local ttl = ttl_seconds(fields[1])
  if ttl then redis.call('EXPIRE', 'rq:job:' .. id, ttl) end  -- the claim had removed the expiry
  redis.call('LPUSH', 'rq:queue:' .. queue, id)
  redis.pcall('SADD', 'rq:queues', 'rq:queue:' .. queue)
  return true
end

-- Whether a job belongs to a part of a flow that goes on if it does not succeed.
local function is_passed_over(place)
  return place and string.match(place, ' continue$') ~= nil
end

-- Whether a job that depends on this one can stop waiting for it. RQ counts a deleted job as
-- finished. In a flow that goes on, every end counts.
local function has_ended(id, failures_allowed)
  local status = (read_job(id, 'status') or {})[1]
  if not status or status == 'finished' then return true end
  if not failures_allowed then return false end
  return status == 'failed' or (status == 'stopped' or status == 'canceled')
    and is_passed_over((read_job(id, 'rqjobs_flow') or {})[1])
end

-- Note a job that has ended without a success, and not as failed. If its flow goes on, the next
-- sweep enqueues the jobs behind it. Returns whether it does.
local function note_unfinished(id)
  local place = (read_job(id, 'rqjobs_flow') or {})[1]
  if not is_passed_over(place) or redis.call('EXISTS', 'rq:job:' .. id .. ':dependents') == 0 then
    return false
  end
  return type(redis.pcall('SADD', 'rqjobs:ended-parents', id)) == 'number'
end

-- Add the job to the scheduled set. A message wakes the scheduler if the job is due before its next
-- poll.
local function add_scheduled(id, queue, due, poll_seconds)
  redis.call('ZADD', 'rq:scheduled:' .. queue, due, id)
  if tonumber(due) < redis_time() + tonumber(poll_seconds) then
    redis.pcall('PUBLISH', 'rqjobs:wakeup:' .. queue, due)
  end
end

local MANY_PARENTS = 16  -- the parents that are checked at the end of each one

-- Whether a deferred job still has to wait for a parent. `parent` is the one that ends now, as
-- `outcome` ("finished", "failed", or "" for the status in its hash).
-- To check all of many parents at the end of each one would take quadratic time. So the job's hash
-- names a `blocker`: a parent that had not ended at the last check. As long as it has not, the job
-- waits. The order of a large set does not depend on the order in which the parents end, so a few
-- checks of all of them are enough.
local function waits_for_parents(child, parent, outcome, failures_allowed, blocker)
  local dependencies = 'rq:job::' .. child .. ':dependencies'
  local function waits_for(id)
    if id == parent and (outcome == 'finished' or outcome == 'failed' and failures_allowed) then
      return false
    end
    return not has_ended(id, failures_allowed)
  end
  if blocker and redis.pcall('SISMEMBER', dependencies, blocker) == 1 and waits_for(blocker) then
    return true
  end
  local ids = set_members(dependencies)
  for i = #ids, 1, -1 do
    if waits_for(ids[i]) then
      if #ids > MANY_PARENTS then
        redis.call('HSET', 'rq:job:' .. child, 'rqjobs_blocker', ids[i])
      end
      return true
    end
  end
end

-- Put a job that is deferred behind `parent` into its queue, or into the scheduled set if it is
-- delayed too, unless it waits for another parent. Returns whether the job was moved.
local function enqueue_dependent(child, parent, outcome, iso, default_timeout)
  local fields = read_job(child, 'origin', 'status', 'allow_dependency_failures',
    'enqueue_at_front', 'timeout', 'ttl', 'rqjobs_due', 'rqjobs_limit', 'rqjobs_blocker')
  if not fields or fields[2] ~= 'deferred' then return false end
  local queue, due = fields[1], tonumber(fields[7] or '')
  if not is_in_place(child, queue, 'deferred') then return false end
  if waits_for_parents(child, parent, outcome, fields[3] == '1', fields[9]) then return false end
  local before = placement(child)
  local status = due and due > redis_time() and 'scheduled' or 'queued'
  if not fits('rq:queue:' .. queue, 'list') or not fits('rq:scheduled:' .. queue, 'zset') then
    return false
  end
  redis.call('HSET', 'rq:job:' .. child, 'status', status, 'enqueued_at', iso,
    'timeout', fields[5] or default_timeout)
  if ttl_seconds(fields[6]) then
    redis.call('EXPIRE', 'rq:job:' .. child, ttl_seconds(fields[6]))
  end
  revoke(child, before)
  if fields[4] == '1' and fields[8] then  -- it is at the front of the line of its limit too
    redis.call('HSET', 'rq:job:' .. child, 'rqjobs_woken', '1')
  end
  if status == 'scheduled' then
    add_scheduled(child, queue, string.format('%.17g', due), '+inf')  -- Lua reads more than Redis
  else
    redis.call(fields[4] == '1' and 'LPUSH' or 'RPUSH', 'rq:queue:' .. queue, child)
    count_event('enqueued', queue, 1)
  end
  redis.pcall('SADD', 'rq:queues', 'rq:queue:' .. queue)
  redis.pcall('ZREM', 'rq:deferred:' .. queue, child)
  redis.pcall('SREM', 'rq:job:' .. parent .. ':dependents', child)
  return true
end

-- Enqueue the jobs that depend on this one, which ends as `outcome`, and on no other unended job.
-- More than a hundred would hold up all other clients: then the job is noted in
-- rqjobs:ended-parents, for `enqueue_dependents.lua`. Returns whether it was noted.
local function enqueue_dependents(id, outcome, iso, default_timeout)
  local dependents = 'rq:job:' .. id .. ':dependents'
  if redis.call('TYPE', dependents).ok ~= 'set' then return false end
  if redis.call('SCARD', dependents) > 100 and fits('rqjobs:ended-parents', 'set') then
    redis.call('SADD', 'rqjobs:ended-parents', id .. ':' .. outcome)
    return true
  end
  for _, child in ipairs(set_members(dependents)) do
    enqueue_dependent(child, id, outcome, iso, default_timeout)
  end
  return false
end

-- Note a failure that `follow_failure.lua` has to group, or whose on_failed it has to call. `call`
-- is "", or lines: the function to call, then its arguments.
local function note_failure(id, run, call)
  local key = 'rqjobs:new-failures'
  if not fits(key, 'hash') then redis.call('RENAME', key, 'rqjobs:odd:' .. key) end
  local moment = string.format('%.6f', redis_time())
  local value = call == '' and moment or moment .. '\n' .. call
  redis.call('HSET', key, id .. ':' .. (run or moment), value)
end

-- Fail a job for a reason of our own. `traceback` is as RQ stores it. The next sweep groups the
-- failure, and enqueues the jobs that depend on the job and may run after a failure.
local function fail_job(queue, id, worker, traceback, iso, default_ttl)
  local job, results = 'rq:job:' .. id, 'rq:results:' .. id
  local failure_ttl = redis.pcall('HGET', job, 'failure_ttl')
  local is_hash = type(failure_ttl) ~= 'table'
  local kept = ttl_seconds(is_hash and failure_ttl) or tonumber(default_ttl)
  local expiry = failure_ttl == '-1' and '+inf' or redis_time() + kept
  redis.pcall('ZADD', 'rq:failed:' .. queue, expiry, id)
  note_failure(id, nil, '')
  count_event('failed', queue, 1)
  if not is_hash then return end
  redis.call('HSET', job, 'status', 'failed', 'ended_at', iso, 'origin', queue)
  redis.call('HDEL', job, 'rqjobs_token')
  redis.call('PERSIST', job)
  if failure_ttl ~= '-1' then redis.call('EXPIRE', job, kept) end
  redis.pcall('XADD', results, 'MAXLEN', '~', 10, '*', 'type', 2, 'worker_name', worker,
    'exc_string', traceback)
  expire_with(job, results)
  expire_with(job, 'rqjobs:log:' .. id)
  if end_policies then end_policies(id) end
  if redis.call('EXISTS', job .. ':dependents') == 1 then
    redis.pcall('SADD', 'rqjobs:ended-parents', id)
  end
end

-- Count an event that is rare, for the metrics.
local function count_total(name)
  redis.pcall('HINCRBY', 'rqjobs:totals', name, 1)
end

-- Count a crash: a process has died under the job. Returns the number of crashes within the last
-- `window` seconds.
local function count_crash(id, window)
  local job, now, crashes = 'rq:job:' .. id, redis_time(), {}
  for moment in string.gmatch(redis.call('HGET', job, 'rqjobs_crashes') or '', '%d+') do
    if tonumber(moment) > now - tonumber(window) then crashes[#crashes + 1] = moment end
  end
  crashes[#crashes + 1] = string.format('%d', now)
  redis.call('HSET', job, 'rqjobs_crashes', table.concat(crashes, ','))
  return #crashes
end

-- The names of queues in ARGV from `first`. If the first of them is "", those of all queues in
-- Redis belong to them too.
local function queues_from(first)
  local names, is_known = {}, {}
  local function add(name)
    if not is_known[name] then names[#names + 1] = name end
    is_known[name] = true
  end
  for i = first, #ARGV do
    if ARGV[i] ~= '' then add(ARGV[i]) end
  end
  if ARGV[first] == '' then
    for _, key in ipairs(redis.pcall('SMEMBERS', 'rq:queues')) do
      add((string.gsub(key, '^rq:queue:', '')))
    end
  end
  return names
end

-- The stopped jobs of a queue. RQ keeps them among its failed jobs, and RQ's tools may remove them
-- from there, so each job's hash decides.
local function stopped_jobs(queue)
  local found = {}
  for _, id in ipairs(redis.pcall('ZRANGE', 'rqjobs:stopped:' .. queue, 0, -1)) do
    local is_listed = type(redis.pcall('ZSCORE', 'rq:failed:' .. queue, id)) == 'string'
    local fields = is_listed and read_job(id, 'status')
    if fields and fields[1] == 'stopped' then found[#found + 1] = id end
  end
  return found
end
