-- Claim jobs for a worker: first those that Redis has put into its claims and that it does not know
-- of (a blocking pop delivered them, or a reply was lost), then new ones from its queues.
--
-- KEYS  1 rqjobs:claims:<worker>   2 rqjobs:leases   then the queues in order of priority
-- ARGV  1 worker   2 maximum number of jobs   3 now, as RQ writes it
--       4 traceback for a job that cannot be read   5 RQ's default failure_ttl
--       6 a prefix for tokens, never used before   7 the worker's process, or ""
--       8 traceback for a job that has expired   9 and for one whose unique key another job has
--       then the known ids: the claimed jobs that the worker is aware of
-- Promise:
--   Every id that leaves a queue is in the claims. Left out are jobs that are gone, have ended, are
--   claimed already, or were enqueued again elsewhere. A job that cannot be read fails.
--   An unknown job in the claims is returned with a fresh token, so a lost reply loses no job. If
--   the maximum is reached, it returns to the front of its queue.
--   A job under which a process died is claimed alone.
--   A job with a limit takes a slot and a token of its key, or leaves its queue to wait for them.
--   A job that has expired before its first run ends instead.
--   Of the jobs with one unique key at most one runs. Another one ends instead.
--   Nothing is claimed without a live lease, for a name that another process has taken over, or
--   while RQ is suspended. Nothing is claimed from a paused queue; a job that a blocking pop
--   delivered from one returns to the front.
-- Returns {"ok", {id, queue, token, {field, value, …}}, …}, or {"no lease"}, or {"suspended"}. If
-- anything is paused, a list precedes the jobs: {"paused", {"queue:<name>", "function:<name>", …},
-- {id, …}, …}. The first word is "more", or "paused more", if so many jobs had to wait for their
-- limits, or had expired, that not all were looked at.

local claims, leases = KEYS[1], KEYS[2]
local worker, places_left, now_text = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local unreadable_traceback, default_ttl = ARGV[4], ARGV[5]
local token_prefix, process, expired_traceback = ARGV[6], ARGV[7], ARGV[8]
local duplicate_traceback = ARGV[9]
local known = {}
for i = 10, #ARGV do known[ARGV[i]] = true end

local lease = redis.pcall('ZSCORE', leases, worker)  -- an error if the key has the wrong type
if type(lease) ~= 'string' or tonumber(lease) <= redis_time() then return {'no lease'} end
if process ~= '' and redis.pcall('HGET', 'rqjobs:process:' .. worker, 'process') ~= process then
  return {'no lease'}
end
local paused, is_paused = {}, {}  -- the paused queues and functions, as a list and as a set
if redis.call('EXISTS', 'rq:suspended', 'rqjobs:paused') > 0 then
  if redis.call('EXISTS', 'rq:suspended') == 1 then return {'suspended'} end
  paused = redis.pcall('HKEYS', 'rqjobs:paused')
  if paused.err then paused = {} end  -- the key has the wrong type; a sweep renames it
  for _, member in ipairs(paused) do is_paused[member] = true end
end

local FIELDS = {status = true, data = true, origin = true, rqjobs_token = true,
  rqjobs_crashes = true, worker_name = true, rqjobs_limit = true, rqjobs_woken = true,
  rqjobs_expires = true, ended_at = true, rqjobs_unique = true, rqjobs_until = true,
  rqjobs_failure_group = true, rqjobs_waits_for = true, rqjobs_paused = true}
local MAX_PARKED = 200  -- jobs that one call lets wait
local ENDED = {canceled = true, finished = true, failed = true, stopped = true}
local claimed = {}  -- the jobs of the reply
local unique_ids = {}  -- unique key -> the job that takes it in this call
local parked = 0
local expired_left = 200  -- expired jobs that this call may end; more would hold up other clients

-- Whether the job is in another place than the one where its id was found: `queue`, or (nil) the
-- claims. Only an id that was enqueued before can be elsewhere.
local function is_elsewhere(id, job, queue)
  if queue and job.status == 'queued' then
    return job.origin and job.origin ~= queue and is_in_place(id, job.origin, job.status)
  end
  -- A job that has never run has no worker_name. Its queue need not be searched.
  if job.status == 'queued' and not job.has_worker_name then return false end
  return is_in_place(id, job.origin, job.status)
end

-- Whether a job has not begun in time. A job that has ended before, or crashed, has begun.
local function is_expired(job)
  if not job.rqjobs_expires or job.ended_at or job.rqjobs_crashes then return false end
  local moment = tonumber(string.match(job.rqjobs_expires, '^[%d.]+') or '')
  return moment and moment <= redis_time()
end

-- Whether another job has the unique key of this one. Only a job that plain RQ has enqueued again
-- can meet one.
local function is_duplicate(id, key)
  local holder = unique_holder(key)
  if holder and (holder.id ~= id or holder.state ~= 'kept') then return holder.id ~= id end
  unique_ids[key] = unique_ids[key] or id
  return unique_ids[key] ~= id
end

-- Read a job. Returns the fields needed here, or a `reason` to skip it. An id may have been pushed
-- twice, so the job may be claimed already: by another worker or, if the id was found in a queue,
-- by this one. If a claimed job's status is "queued", the job was enqueued again after the claim.
local function inspect(id, queue)
  local me = not queue and worker  -- false: this worker counts as another one
  local is_id = #id <= 255 and not string.find(id, '[^%w_-]')  -- RQ's rule for ids
  local fields = is_id and redis.pcall('HGETALL', 'rq:job:' .. id)
  if not is_id or fields.err then return {reason = 'unreadable'} end
  local job = {fields = fields}
  for i = 1, #fields, 2 do
    if FIELDS[fields[i]] and fields[i + 1] ~= '' then job[fields[i]] = fields[i + 1] end
    if fields[i] == 'worker_name' then job.has_worker_name = true end
  end
  if job.rqjobs_limit or job.rqjobs_expires or job.rqjobs_unique then define_rare() end
  if #fields == 0 then
    job.reason = 'gone'
  elseif ENDED[job.status] then
    job.reason = 'ended'
  elseif not job.data then
    job.reason = 'unreadable'
  elseif is_elsewhere(id, job, queue) then
    job.reason = 'elsewhere'
  elseif (job.status == 'started' or not queue)
      and is_held_by_another(id, me, job.rqjobs_token, job.worker_name) then
    job.reason = 'claimed'
  elseif job.rqjobs_expires and is_expired(job) then
    job.reason = 'expired'
  elseif job.rqjobs_unique and job.rqjobs_until ~= 'started'
      and is_duplicate(id, job.rqjobs_unique) then
    job.reason = 'duplicate'
  end
  return job
end

-- Whether a job must wait for its limit. If not, it has its slot now. `is_adopted`: the job was
-- claimed before, and may have a slot.
local function must_wait(id, queue, job, is_adopted)
  local limit = parse_limit(job.rqjobs_limit)
  if not limit or is_adopted and has_slot(worker, id, limit.key) then return false end
  local is_first = job.rqjobs_woken or is_before_waiting(queue, limit.key, worker)
  if not is_first or not has_room(limit) then return true end
  take_slot(worker, id, limit)
  return false
end

local function let_wait(id, queue, job)
  local limit = parse_limit(job.rqjobs_limit)
  park(id, queue, limit.key, job.rqjobs_woken, queue_ranks(worker))
  if limit.seconds > 0 then
    local first = first_in_line(limit.key)
    note_token_time(limit.key, first and first.limit or limit)
  end
  parked = parked + 1
end

local function end_expired(id, queue)
  end_unrun(queue, id, worker, 'expired', expired_traceback, now_text, default_ttl)
end

local function end_duplicate(id, queue)
  end_unrun(queue, id, worker, 'discarded', duplicate_traceback, now_text, default_ttl)
end

-- Mark a job in the claims as started, in RQ's own fields, and add it to the reply. If plain RQ
-- enqueued the id again, its old claim and its old registry entries are removed. Returns the job's
-- member of rq:wip.
local function start(id, queue, job, was_queued)
  local token = token_prefix .. string.format('%02x', #claimed + 1)
  redis.call('HSET', 'rq:job:' .. id, 'status', 'started', 'started_at', now_text,
    'last_heartbeat', now_text, 'worker_name', worker, 'rqjobs_token', token)
  if was_queued and job.rqjobs_token then
    define_rare()  -- the earlier run may have had a slot
    drop_refused('rqjobs:claims:' .. (job.worker_name or ''), job.origin or queue, id,
      job.rqjobs_token, {token, nil, nil, nil, worker})
  end
  if job.has_worker_name then
    remove_from_registries(id, job.origin or queue, 'scheduled', 'deferred', 'failed', 'canceled')
    leave_failure_group(id, job.rqjobs_failure_group)
  end
  if job.origin ~= queue then redis.call('HSET', 'rq:job:' .. id, 'origin', queue) end
  if job.rqjobs_woken then redis.call('HDEL', 'rq:job:' .. id, 'rqjobs_woken') end
  if job.rqjobs_waits_for or job.rqjobs_paused then  -- plain RQ has ended its wait
    redis.call('HDEL', 'rq:job:' .. id, 'rqjobs_waits_for', 'rqjobs_paused')
    remove_from_registries(id, job.origin or queue, 'deferred')
  end
  if job.rqjobs_unique and unique_ids[job.rqjobs_unique] == id then
    redis.pcall('HSET', 'rqjobs:unique', job.rqjobs_unique, id)
  end
  redis.call('PERSIST', 'rq:job:' .. id)
  claimed[#claimed + 1] = {id, queue, token, job.fields}
  places_left = job.rqjobs_crashes and 0 or places_left - 1  -- 0 ends the claim
  return id .. ':' .. token
end

-- Take over an unknown job in the claims: a blocking pop delivered it, or the reply to an earlier
-- claim was lost. Returns the job if the maximum is reached, or its queue is paused.
local function adopt(id)
  local job = inspect(id)
  local queue = job.origin
  local lost_token = queue and job.rqjobs_token
  if not queue and not job.reason then job.reason = 'unreadable' end
  local must_return = places_left == 0 or job.rqjobs_crashes and #claimed > 0
    or queue and is_paused['queue:' .. queue]
  if not job.reason and must_return then return {id = id, queue = queue, token = lost_token} end
  if not job.reason and job.rqjobs_limit and must_wait(id, queue, job, true) then
    let_wait(id, queue, job)
    job.reason = 'over its limit'
  end
  if not job.reason then
    redis.pcall('ZADD', 'rq:wip:' .. queue, '+inf', start(id, queue, job))
  elseif job.reason == 'unreadable' then
    fail_job(queue or 'default', id, worker, unreadable_traceback, now_text, default_ttl)
  elseif job.reason == 'expired' then
    end_expired(id, queue)
  elseif job.reason == 'duplicate' then
    end_duplicate(id, queue)
  end
  if job.reason then
    redis.call('LREM', claims, 0, id)
    if job.reason ~= 'claimed' then free_slot(worker, id) end
  end
  if lost_token and job.reason ~= 'claimed' then
    redis.pcall('ZREM', 'rq:wip:' .. queue, id .. ':' .. lost_token)
  end
end

-- Adopt the jobs in the claims. Put those beyond the maximum, or of a paused queue, back in order.
local function adopt_all()
  local ids, surplus = redis.pcall('LRANGE', claims, 0, -1), {}
  if ids.err then redis.call('RENAME', claims, 'rqjobs:odd:' .. claims) end  -- the wrong type
  for _, id in ipairs(ids) do
    if not known[id] then
      known[id] = true
      define_rare()  -- the job may have a slot
      local job = adopt(id)
      if job then table.insert(surplus, 1, job) end
    end
  end
  for _, job in ipairs(surplus) do
    if put_back(job.queue, job.id) then drop_claim(claims, job.queue, job.id, job.token) end
  end
end

-- Choose jobs from the front of a queue. `count` is the number of ids to remove from it.
local function choose(queue, ids)
  local chosen = {count = 0, ids = {}, jobs = {}, unreadable = {}, expired = {}, duplicates = {},
    waiting = {}, unused = {}}
  for _, id in ipairs(ids) do
    local job = chosen.jobs[id] and {reason = 'claimed'} or inspect(id, queue)
    if job.rqjobs_crashes and not job.reason then  -- to be claimed alone
      if #claimed + #chosen.ids > 0 then
        places_left = 0
        break
      end
      places_left = 1
    end
    if job.reason == 'expired' and expired_left == 0 then
      places_left = 0
      break
    end
    chosen.count = chosen.count + 1
    if job.reason == 'unreadable' then
      table.insert(chosen.unreadable, id)
    elseif job.reason then
      if job.rqjobs_woken then table.insert(chosen.unused, job) end
      if job.reason == 'expired' then
        expired_left = expired_left - 1
        table.insert(chosen.expired, id)
      elseif job.reason == 'duplicate' then
        table.insert(chosen.duplicates, id)
      end
    elseif job.rqjobs_limit and must_wait(id, queue, job) then
      -- Those that return to the front of their line: the last one first.
      table.insert(chosen.waiting, job.rqjobs_woken and 1 or #chosen.waiting + 1, id)
      chosen.jobs[id] = job
      if parked + #chosen.waiting == MAX_PARKED then break end
    else
      table.insert(chosen.ids, id)
      chosen.jobs[id] = job
      if #chosen.ids == places_left then break end
    end
  end
  return chosen
end

local function claim_from(key)
  local queue, window = string.sub(key, 10), 0
  if is_paused['queue:' .. queue] then return end
  while places_left > 0 and parked < MAX_PARKED do
    local ids = redis.pcall('LRANGE', key, 0, math.max(places_left, window) - 1)
    if #ids == 0 then return end  -- empty, or of the wrong type
    local chosen = choose(queue, ids)
    -- Both calls below of unpack are bounded by the maximum number of jobs.
    if #chosen.ids > 0 then redis.call('RPUSH', claims, unpack(chosen.ids)) end
    for _, id in ipairs(chosen.unreadable) do
      fail_job(queue, id, worker, unreadable_traceback, now_text, default_ttl)
    end
    for _, id in ipairs(chosen.expired) do end_expired(id, queue) end
    for _, id in ipairs(chosen.duplicates) do end_duplicate(id, queue) end
    for _, id in ipairs(chosen.waiting) do let_wait(id, queue, chosen.jobs[id]) end
    if #chosen.waiting > 0 then window = 50 end  -- more of them may follow
    if chosen.count > 0 then redis.call('LTRIM', key, chosen.count, -1) end
    if #chosen.ids > 0 then
      local entries = {}
      for _, id in ipairs(chosen.ids) do
        entries[#entries + 1] = '+inf'
        entries[#entries + 1] = start(id, queue, chosen.jobs[id], true)
      end
      redis.pcall('ZADD', 'rq:wip:' .. queue, unpack(entries))
    end
    for _, job in ipairs(chosen.unused) do
      local limit = parse_limit(job.rqjobs_limit)
      if limit then wake(limit.key, 1) end
    end
  end
end

adopt_all()
for i = 3, #KEYS do claim_from(KEYS[i]) end
local is_cut_short = parked >= MAX_PARKED or expired_left == 0
local reply = {is_cut_short and 'more' or 'ok'}
if #paused > 0 then reply = {is_cut_short and 'paused more' or 'paused', paused} end
for _, job in ipairs(claimed) do reply[#reply + 1] = job end
return reply
