-- Accept jobs: write each job and put it into its place. Jobs that are enqueued, delayed or
-- dependent come through this script, from pipelines and groups too. Jobs of schedules come through
-- run_schedule.lua; retries and repeats at once, which RQ's code writes, through settle.lua.
--
-- KEYS  1 rq:queues
-- ARGV  1 seconds between two polls of the scheduler, then for each job an entry of these words:
--       queue, job id, place, ttl, is new, number of parent words, number of field words;
--       the parent words: "1" if the job may run after a parent's failure, else "", then the ids
--       of its parents; the field words: fields and values of its hash
--       place: "back" or "front" of the queue; a due time in Unix seconds; "nowhere" (the caller
--       runs the job)   ttl: seconds, "" for none   is new: "1" if no job had this id
-- Promise: a job and its place are written in one step, and all entries of one call too. An
-- existing job of this id leaves its place, its worker loses it (the outcome of that run will be
-- refused), and its options, ttl, crashes and parents are cleared.
-- Returns the ids of the jobs that wait for parents.

local OPTIONS = {'retries_left', 'retry_intervals', 'number_of_retries',
  'enqueue_at_front_on_retry', 'repeats_left', 'repeat_intervals', 'rqjobs_repeat',
  'dependency_id', 'dependency_ids', 'allow_dependency_failures', 'enqueue_at_front',
  'success_callback_timeout', 'failure_callback_timeout', 'stopped_callback_timeout', 'webhooks',
  'ttl', 'result_ttl', 'failure_ttl', 'meta', 'result', 'exc_info', 'rqjobs_crashes', 'rqjobs_limit',
  'rqjobs_woken', 'rqjobs_waits_for', 'rqjobs_expires', 'rqjobs_kill_after', 'rqjobs_ending',
  'rqjobs_paused', 'rqjobs_retry', 'rqjobs_retries'}

-- The entry whose first word is ARGV[at]. `parents` and `fields` are positions of first words; the
-- parents' ids begin after the first parent word.
local function entry_at(at)
  local parents = at + 7
  local fields = parents + ARGV[at + 5]
  return {queue = ARGV[at], id = ARGV[at + 1], place = ARGV[at + 2], ttl = ARGV[at + 3],
    is_new = ARGV[at + 4] == '1', parents = parents, fields = fields,
    last = fields + ARGV[at + 6] - 1}
end

-- Clear the options and the parents of an earlier life of the job.
local function clear_earlier_life(entry)
  local id = entry.id
  local job, dependencies = 'rq:job:' .. id, 'rq:job::' .. id .. ':dependencies'
  for _, parent in ipairs(set_members(dependencies)) do
    redis.pcall('SREM', 'rq:job:' .. parent .. ':dependents', id)
  end
  redis.call('DEL', dependencies)
  redis.call('PERSIST', job)
  redis.call('PERSIST', job .. ':dependents')
  local new, old = {}, {}
  for i = entry.fields, entry.last, 2 do new[ARGV[i]] = true end
  for _, option in ipairs(OPTIONS) do
    if not new[option] then old[#old + 1] = option end
  end
  redis.call('HDEL', job, unpack(old))
end

-- Whether the job has to wait for a parent. It never waits for itself: its earlier life ends now.
local function must_wait(entry)
  for i = entry.parents + 1, entry.fields - 1 do
    if ARGV[i] ~= entry.id and not has_ended(ARGV[i], ARGV[entry.parents] == '1') then
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
  return keys
end

-- A key of the wrong type that one of the entries needs.
local function wrong_key()
  local is_wrong, at = {}, 2
  while at <= #ARGV do
    local entry = entry_at(at)
    for key, kind in pairs(needed_keys(entry)) do
      if is_wrong[key] == nil then is_wrong[key] = not fits(key, kind) end
      if is_wrong[key] then return key end
    end
    at = entry.last + 1
  end
end

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

-- Apply the policies of a job that begins a life. `due` is nil if it is not delayed.
local function begin_policies(id, policies, due)
  if policies.rqjobs_expires then
    start_expiry(id, policies.rqjobs_expires, math.max(due or 0, redis_time()))
    redis.call('HSET', 'rq:job:' .. id, 'ended_at', '')  -- of an earlier life
  end
end

local function accept(entry)
  local id, queue, job = entry.id, entry.queue, 'rq:job:' .. entry.id
  local before = not entry.is_new and placement(id)
  local waits = entry.fields > entry.parents and must_wait(entry)
  local due = tonumber(entry.place)
  redis.call('HSET', job, unpack(ARGV, entry.fields, entry.last))
  if before then
    retire(id, before)
    clear_earlier_life(entry)
  end
  if entry.ttl ~= '' then redis.call('EXPIRE', job, entry.ttl) end
  local policies = policies_of(entry)
  if policies then begin_policies(id, policies, due) end
  if waits then
    defer(entry, due)
  elseif due then
    add_scheduled(id, queue, entry.place, ARGV[1])
  elseif entry.place ~= 'nowhere' then
    redis.call(entry.place == 'front' and 'LPUSH' or 'RPUSH', 'rq:queue:' .. queue, id)
  end
  return waits
end

local wrong = wrong_key()
if wrong then
  return redis.error_reply('ERR the key ' .. wrong .. ' has the wrong type; rename or delete it')
end
local registered, deferred, at = {}, {}, 2
while at <= #ARGV do
  local entry = entry_at(at)
  if accept(entry) then deferred[#deferred + 1] = entry.id end
  if not registered[entry.queue] then
    redis.pcall('SADD', KEYS[1], 'rq:queue:' .. entry.queue)
    registered[entry.queue] = true
  end
  at = entry.last + 1
end
return deferred
