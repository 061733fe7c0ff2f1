-- Accept jobs: write each job and put it into its place. Jobs that are enqueued, delayed or
-- dependent come through this script, from pipelines and groups too. Jobs of schedules come through
-- run_schedule.lua; retries and repeats at once, which RQ's code writes, through settle.lua.
--
-- KEYS  1 rq:queues   2 rqjobs:outbox, if the one job is that of a row of the outbox, or if the jobs
--       are some of a flow that is one row; rqjobs:once, if the one job is that of a request with an
--       Idempotency-Key   3 for a request: the key that keeps the id of the job, if it is another one
-- ARGV  1 seconds between two polls of the scheduler
--       for a row or a request then: 2 its id   3 when it was read, in Unix seconds   4 seconds for
--       which it may be moved after that   5 when its mark is dropped
--       then for each job an entry of these words:
--       queue, job id, place, ttl, is new, number of parent words, number of field words;
--       the parent words: "1" if the job may run after a parent's failure, else "", and "!" behind
--       that if all parents must exist; then the ids of its parents
--       the field words: fields and values of its hash
--       place: "back" or "front" of the queue; a due time in Unix seconds; "nowhere" (the caller
--       runs the job); "held" (deferred until its flow is released)   ttl: seconds, "" for none
--       is new: "1" if no job had this id, "2" if no job may have it, else "0"
-- Promise: a job and its place are written in one step, and all entries of one call too. An
-- existing job of this id leaves its place, its worker loses it (the outcome of that run will be
-- refused), and its options, ttl, crashes and parents are cleared.
--   Of a unique key at most one job waits or runs. If its key is taken, a job is not stored; or it
-- replaces the waiting job of that key, under that job's id; or, if it asks for an error, no job of
-- the call is stored.
--   A held job is refused with all of its call if its flow was dropped. So is a job whose id must be
-- new, or whose parents must exist, if that is not so.
--   The job of a row or a request is stored together with its mark, and not if there is a mark. The
-- mark of a flow is set when the flow is released. Its jobs are stored if they are those that come
-- next in the flow and no such job exists: then several movers do no harm.
--   A debounced job is due later. A call that replaces it delays it again, up to its maximum.
-- Returns the ids of the jobs that wait for parents; and a list for each entry that was stored
-- under another id, was debounced, or was not stored: its position (0 is the first), the id of the
-- job of its key, and the status of that job, or "exists" or "refused" if the entry was not stored.
-- If no job may have the id of an entry, and one has it, the word is "taken"; if an entry has no such
-- parent, it is "missing", behind the id of the parent.
-- For a row or a request that was not moved it returns the status "already moved" or "read too long
-- ago", and for jobs of a flow that do not come next "not next".
-- Without policies.lua in front it is the script for new jobs without policies.

local OPTIONS = {'retries_left', 'retry_intervals', 'number_of_retries',
  'enqueue_at_front_on_retry', 'repeats_left', 'repeat_intervals', 'rqjobs_repeat',
  'dependency_id', 'dependency_ids', 'allow_dependency_failures', 'enqueue_at_front',
  'success_callback_timeout', 'failure_callback_timeout', 'stopped_callback_timeout', 'webhooks',
  'ttl', 'result_ttl', 'failure_ttl', 'meta', 'result', 'exc_info', 'rqjobs_crashes',
  'rqjobs_limit', 'rqjobs_woken', 'rqjobs_waits_for', 'rqjobs_expires', 'rqjobs_kill_after',
  'rqjobs_ending', 'rqjobs_paused', 'rqjobs_retry', 'rqjobs_retries',
  'rqjobs_unique', 'rqjobs_until', 'rqjobs_keep', 'rqjobs_conflict', 'rqjobs_debounce',
  'rqjobs_on_failed', 'rqjobs_cursors', 'rqjobs_progress', 'rqjobs_flow', 'rqjobs_blocker',
  'rqjobs_log'}

local HELD_SECONDS = 60  -- after the last step of storing a flow it counts as abandoned
local FLOW_SECONDS = 366 * 24 * 3600  -- for which a flow is kept that does not end
local NOTE_SECONDS = 2 * 24 * 3600  -- for which the id of a request's job is kept; its mark: a day

-- The fields of the job's policies; nil if it has none. They are the last ones of its hash.
local function policies_of(entry)
  local found
  for i = entry.last - 1, entry.fields, -2 do
    if string.sub(ARGV[i], 1, 7) ~= 'rqjobs_' then return found end
    found = found or {}
    found[ARGV[i]] = ARGV[i + 1]
  end
  return found
end

-- The entry whose first word is ARGV[at]. `parents` and `fields` are positions of first words; the
-- parents' ids begin after the first parent word.
local function entry_at(at)
  local parents = at + 7
  local fields = parents + ARGV[at + 5]
  local entry = {queue = ARGV[at], id = ARGV[at + 1], place = ARGV[at + 2], ttl = ARGV[at + 3],
    is_new = ARGV[at + 4] == '1', must_be_new = ARGV[at + 4] == '2',
    parents = parents, fields = fields, last = fields + ARGV[at + 6] - 1}
  if fields > parents then
    local may_fail, must_exist = string.match(ARGV[parents], '^(1?)(!?)$')
    entry.parents_may_fail, entry.parents_must_exist = may_fail == '1', must_exist == '!'
  end
  entry.policies = policies_of(entry)
  if entry.policies and entry.policies.rqjobs_unique then
    entry.key, entry.on_conflict = entry.policies.rqjobs_unique, entry.policies.rqjobs_conflict
    entry.debounce, entry.debounce_max =
      string.match(entry.policies.rqjobs_debounce or '', '^(%S+) (%S+)')
  end
  if entry.is_new and entry.policies and entry.policies.rqjobs_flow then
    entry.flow, entry.position = string.match(entry.policies.rqjobs_flow, '^(%S+) (%d+)')
  end
  return entry
end

-- Clear the options, the parents and the log of an earlier life of the job.
local function clear_earlier_life(entry)
  local id = entry.id
  local job, dependencies = 'rq:job:' .. id, 'rq:job::' .. id .. ':dependencies'
  for _, parent in ipairs(set_members(dependencies)) do
    redis.pcall('SREM', 'rq:job:' .. parent .. ':dependents', id)
  end
  redis.call('DEL', dependencies, 'rqjobs:log:' .. id)
  redis.call('PERSIST', job)
  redis.call('PERSIST', job .. ':dependents')
  local new, old = {}, {}
  for i = entry.fields, entry.last, 2 do new[ARGV[i]] = true end
  for _, option in ipairs(OPTIONS) do
    if not new[option] then old[#old + 1] = option end
  end
  redis.call('HDEL', job, unpack(old))
end

-- Clear every field of the job that this entry replaces. (The entry of a new id has no empty ones.)
local function clear_replaced(entry)
  local kept, job = {rqjobs_settled_token = true}, 'rq:job:' .. entry.id
  for i = entry.fields, entry.last, 2 do kept[ARGV[i]] = true end
  for _, field in ipairs(redis.call('HKEYS', job)) do
    if not kept[field] then redis.call('HDEL', job, field) end
  end
end

-- Whether the job has to wait for a parent. It never waits for itself: its earlier life ends now.
local function must_wait(entry)
  for i = entry.parents + 1, entry.fields - 1 do
    if ARGV[i] ~= entry.id and not has_ended(ARGV[i], entry.parents_may_fail) then
      return true
    end
  end
end

local function defer(entry, due)
  local id = entry.id
  redis.call('HSET', 'rq:job:' .. id, 'status', 'deferred')
  if due then redis.call('HSET', 'rq:job:' .. id, 'rqjobs_due', entry.place) end
  redis.call('ZADD', 'rq:deferred:' .. entry.queue, string.format('%d', redis_time()), id)
  for i = entry.parents + 1, entry.fields - 1 do
    if ARGV[i] ~= id then
      redis.pcall('SADD', 'rq:job:' .. ARGV[i] .. ':dependents', id)
      redis.call('SADD', 'rq:job::' .. id .. ':dependencies', ARGV[i])
    end
  end
end

-- The keys that an entry needs, with the types that they must have.
local function needed_keys(entry)
  local keys = {['rq:queue:' .. entry.queue] = 'list'}
  if tonumber(entry.place) then keys['rq:scheduled:' .. entry.queue] = 'zset' end
  if entry.fields > entry.parents then
    keys['rq:deferred:' .. entry.queue] = 'zset'
    keys['rq:job::' .. entry.id .. ':dependencies'] = 'set'
    for i = entry.parents + 1, entry.fields - 1 do
      keys['rq:job:' .. ARGV[i] .. ':dependents'] = 'set'
    end
  end
  if not entry.is_new then keys['rq:job:' .. entry.id] = 'hash' end
  if entry.key then keys['rqjobs:unique'] = 'hash' end
  if entry.debounce then keys['rq:scheduled:' .. entry.queue] = 'zset' end
  if entry.flow then
    keys['rq:deferred:' .. entry.queue] = 'zset'
    keys['rqjobs:flow:' .. entry.flow] = 'hash'
    keys['rqjobs:flow-jobs:' .. entry.flow] = 'list'
    keys['rqjobs:flow-held:' .. entry.flow] = 'list'
    keys['rqjobs:held-flows'] = 'zset'
  end
  return keys
end

-- A key of the wrong type that one of the entries needs.
local function wrong_key(entries)
  local is_wrong = {}
  for _, entry in ipairs(entries) do
    for key, kind in pairs(needed_keys(entry)) do
      if is_wrong[key] == nil then is_wrong[key] = not fits(key, kind) end
      if is_wrong[key] then return key end
    end
  end
end

-- The job because of which an entry cannot be a job of its own. A waiting job of the entry's id is
-- not one: its life ends now.
local function conflict(entry)
  local holder = unique_holder(entry.key)
  if holder and (holder.id ~= entry.id or holder.state ~= 'waits') then return holder end
end

-- The first entry that asks for an error and whose key is taken, also by an earlier entry of this
-- call; as the reply's list.
local function refusal_of(entries)
  local earlier = {}
  for position, entry in ipairs(entries) do
    local holder = entry.key and conflict(entry)
    if entry.key and not holder then
      local id = earlier[entry.key]
      if id and id ~= entry.id then holder = {id = id} end
      earlier[entry.key] = id or entry.id
    end
    if holder and entry.on_conflict == 'raise' then return {position - 1, holder.id, 'refused'} end
  end
end

-- The first entry whose id is taken and must not be, or without a parent that it must have, as the
-- reply's list. The jobs before it in this call count.
local function unmet_demand_of(entries)
  local earlier = {}
  local function exists(id)
    return earlier[id] or redis.call('EXISTS', 'rq:job:' .. id) == 1
  end
  for position, entry in ipairs(entries) do
    if entry.must_be_new and exists(entry.id) then return {position - 1, entry.id, 'taken'} end
    if entry.parents_must_exist then
      for i = entry.parents + 1, entry.fields - 1 do
        if not exists(ARGV[i]) then return {position - 1, ARGV[i], 'missing'} end
      end
    end
    earlier[entry.id] = true
  end
end

-- Delay an entry by its debounce. `holder`: the waiting job that it replaces.
local function put_off(entry, holder)
  local now = redis_time()
  local first, before = now, holder and read_job(holder.id, 'rqjobs_debounce', 'started_at')
  if before and before[1] and not before[2] then  -- a job that has started began its wait anew
    first = tonumber(string.match(before[1], '^%S+ %S+ (%S+)$') or '') or now
  end
  local due = now + entry.debounce
  if tonumber(entry.debounce_max) then due = math.min(due, first + entry.debounce_max) end
  entry.place = string.format('%.6f', due)
  entry.changes = {'status', 'scheduled', 'rqjobs_debounce',
    string.format('%s %s %.6f', entry.debounce, entry.debounce_max, first)}
end

-- Give an entry the id of the waiting job of its key, if it replaces that job. Returns nil if the
-- entry is to be stored, and otherwise the job that has its key.
local function settle_conflict(entry)
  local holder = unique_holder(entry.key)
  local replaces = entry.on_conflict == 'replace' or entry.debounce
  if holder and holder.state == 'waits' and (replaces or holder.id == entry.id) then
    entry.replaced = replaces
    entry.id = holder.id
    entry.is_new = false
    local status = (read_job(holder.id, 'status') or {})[1]
    if entry.debounce and status ~= 'queued' then put_off(entry, holder) end
    return nil
  end
  if not holder and entry.debounce then put_off(entry) end
  return holder
end

-- Apply the policies of a job that begins a life. `due` is nil if it is not delayed.
local function begin_policies(id, policies, place, due)
  if policies.rqjobs_limit and place == 'front' then
    redis.call('HSET', 'rq:job:' .. id, 'rqjobs_woken', '1')  -- it is at the front of its line too
  end
  if policies.rqjobs_expires then
    start_expiry(id, policies.rqjobs_expires, math.max(due or 0, redis_time()))
    redis.call('HSET', 'rq:job:' .. id, 'ended_at', '')  -- of an earlier life
  end
end

-- Whether a job that replaces another one waits in its place: for the same limit, or until its
-- function is resumed. Otherwise a job that is replaced again and again would never be first.
local function stays_deferred(entry, before)
  if before.status ~= 'deferred' or before.queue ~= entry.queue
      or not is_in_place(entry.id, entry.queue, 'deferred') then
    return false
  end
  local fields = read_job(entry.id, 'rqjobs_waits_for', 'rqjobs_paused')
  local limit = parse_limit(entry.policies.rqjobs_limit)
  if fields[1] and limit and limit.key == fields[1] then return 'rqjobs_waits_for', fields[1] end
  if fields[2] then return 'rqjobs_paused', fields[2] end
end

-- The flow of a held job, if the sweep has dropped it, or may do so now. The first job begins it.
local function dropped_flow(entries)
  for _, entry in ipairs(entries) do
    if entry.place == 'held' and entry.position ~= '0' then
      local score = redis.call('ZSCORE', 'rqjobs:held-flows', entry.flow)
      if not score or tonumber(score) <= redis_time() then return entry.flow end
    end
    if entry.place == 'held' then return nil end  -- all jobs of a call are of one flow
  end
end

-- Whether the jobs of a call are those that come next in their flow.
local function come_next(first)
  return redis.call('LLEN', 'rqjobs:flow-jobs:' .. first.flow) == tonumber(first.position)
end

local function existing_job(entries)
  for _, entry in ipairs(entries) do
    if redis.call('EXISTS', 'rq:job:' .. entry.id) == 1 then return entry.id end
  end
end

-- Add the job to its flow.
local function join_flow(entry)
  local flow, ids = 'rqjobs:flow:' .. entry.flow, 'rqjobs:flow-jobs:' .. entry.flow
  redis.call('RPUSH', ids, entry.id)
  if entry.position == '0' then
    redis.call('HSET', flow, ':shape', entry.policies.rqjobs_flow)
    redis.call('EXPIRE', flow, FLOW_SECONDS)
    redis.call('EXPIRE', ids, FLOW_SECONDS)
    redis.pcall('ZADD', 'rqjobs:flows', string.format('%.6f', redis_time()), entry.flow)
  end
  if entry.place ~= 'held' then return end
  local abandoned = string.format('%.3f', redis_time() + HELD_SECONDS)
  redis.call('ZADD', 'rqjobs:held-flows', abandoned, entry.flow)
  if entry.fields == entry.parents then
    redis.call('RPUSH', 'rqjobs:flow-held:' .. entry.flow, entry.id)
  end
end

local entered = {}  -- queue -> number of jobs that this call puts into it

local function accept(entry)
  local id, queue, job = entry.id, entry.queue, 'rq:job:' .. entry.id
  local before = not entry.is_new and placement(id)
  local waits = entry.place == 'held' or entry.fields > entry.parents and must_wait(entry)
  local due = tonumber(entry.place)
  -- A job that replaces another one keeps its place in the queue.
  local may_stay = entry.replaced and not waits and entry.place == 'back'
  local stays = may_stay and before.status == 'queued' and before.queue == queue
  local field, value
  if may_stay then field, value = stays_deferred(entry, before) end
  local is_woken = stays and redis.call('HGET', job, 'rqjobs_woken') == '1'
  redis.call('HSET', job, unpack(ARGV, entry.fields, entry.last))
  if entry.changes then redis.call('HSET', job, unpack(entry.changes)) end
  if before then
    if stays then before.status = 'stays' end
    retire(id, before)
    clear_earlier_life(entry)
    if entry.replaced then clear_replaced(entry) end
    if is_woken then redis.call('HSET', job, 'rqjobs_woken', '1') end
    if before.unique_key and before.unique_key ~= entry.key then
      forget_unique(id, before.unique_key)
    end
  end
  if entry.key then redis.call('HSET', 'rqjobs:unique', entry.key, id) end
  if entry.ttl ~= '' then redis.call('EXPIRE', job, entry.ttl) end
  if entry.policies then begin_policies(id, entry.policies, entry.place, due) end
  if entry.flow then join_flow(entry) end
  if waits then
    defer(entry, due)
  elseif field then
    redis.call('HSET', job, 'status', 'deferred', field, value)
    redis.call('ZADD', 'rq:deferred:' .. queue, string.format('%d', redis_time()), id)
  elseif due then
    add_scheduled(id, queue, entry.place, ARGV[1])
  elseif entry.place ~= 'nowhere' and not stays then
    redis.call(entry.place == 'front' and 'LPUSH' or 'RPUSH', 'rq:queue:' .. queue, id)
    entered[queue] = (entered[queue] or 0) + 1
  end
  return (waits or field) and 'deferred' or due and 'scheduled' or 'queued'
end

local entries, at, may_refuse, demands = {}, 2, false, false
if KEYS[2] then
  at = 6
  if redis.call('ZSCORE', KEYS[2], ARGV[2]) then return redis.status_reply('already moved') end
  if redis_time() > ARGV[3] + ARGV[4] then return redis.status_reply('read too long ago') end
end
while at <= #ARGV do
  local entry = entry_at(at)
  entries[#entries + 1] = entry
  may_refuse = may_refuse or entry.on_conflict == 'raise'
  demands = demands or entry.must_be_new or entry.parents_must_exist
  at = entry.last + 1
end
local wrong = wrong_key(entries)
if wrong then
  return redis.error_reply('ERR the key ' .. wrong .. ' has the wrong type; rename or delete it')
end
local is_flow_of_row = KEYS[2] and entries[1] and entries[1].place == 'held'
if is_flow_of_row then
  if not come_next(entries[1]) then return redis.status_reply('not next') end
  local existing = existing_job(entries)
  if existing then return redis.error_reply('ERR there is a job ' .. existing .. ' already') end
end
local dropped = dropped_flow(entries)
if dropped then
  return redis.error_reply('ERR the flow ' .. dropped .. ' was dropped, because storing it took '
    .. 'too long; enqueue it again')
end
local refused = demands and unmet_demand_of(entries) or may_refuse and refusal_of(entries)
if refused then return {refused} end
local registered, reply = {}, {}
for position, entry in ipairs(entries) do
  local holder = entry.key and settle_conflict(entry)
  if holder then
    reply[#reply + 1] = {position - 1, holder.id, 'exists'}
  else
    local status = accept(entry)
    if entry.replaced or entry.debounce then
      reply[#reply + 1] = {position - 1, entry.id, status}
    elseif status == 'deferred' then
      reply[#reply + 1] = entry.id
    end
    if not registered[entry.queue] then
      redis.pcall('SADD', KEYS[1], 'rq:queue:' .. entry.queue)
      registered[entry.queue] = true
    end
  end
end
if KEYS[2] and not is_flow_of_row then redis.call('ZADD', KEYS[2], ARGV[5], ARGV[2]) end
if KEYS[3] and type(reply[1]) == 'table' then
  redis.call('SET', KEYS[3], reply[1][2], 'EX', NOTE_SECONDS)
end
for queue, number in pairs(entered) do count_event('enqueued', queue, number) end
return reply
