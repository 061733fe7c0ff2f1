-- Accept jobs: write each and put it into its place. The one way there for whatever is enqueued, delayed, or made to wait
-- for other jobs.
--
-- KEYS  1 rq:queues
-- ARGV  1 seconds after which the scheduler looks by itself, then for each job: its queue, its id, "back" or "front" of
--       the queue, or when it is due (Unix seconds), or "nowhere" (the caller runs it), its seconds to live ("" for
--       ever), "1" if there was never a job of this id, how many words say what it waits for, how many words follow; then
--       "1" if it may run after the failure of that, else "", and the ids of that; and the fields and values of its hash
-- Promise: a job and its place are written in one step, all of ARGV in one script. A job of this id that is there
-- already leaves its place, and the worker that runs it has lost it: that run's outcome will be refused, and this one
-- counts. Options, time to live and deaths of the earlier job are forgotten; so are the jobs for which it waited.
-- Returns the ids of those that wait for other jobs.

local OPTIONS = {'retries_left', 'retry_intervals', 'number_of_retries', 'enqueue_at_front_on_retry', 'repeats_left',
  'repeat_intervals', 'rqjobs_repeat', 'dependency_id', 'dependency_ids', 'allow_dependency_failures',
  'enqueue_at_front', 'success_callback_timeout', 'failure_callback_timeout', 'stopped_callback_timeout', 'webhooks',
  'ttl', 'result_ttl', 'failure_ttl', 'meta', 'result', 'exc_info', 'rqjobs_crashes'}

local function forget(id, first, last)
  local job, dependencies, old, new = 'rq:job:' .. id, 'rq:job::' .. id .. ':dependencies', {}, {}
  for _, parent in ipairs(members(dependencies)) do redis.pcall('SREM', 'rq:job:' .. parent .. ':dependents', id) end
  redis.call('DEL', dependencies)
  redis.call('PERSIST', job)
  redis.call('PERSIST', job .. ':dependents')
  for i = first, last, 2 do new[ARGV[i]] = true end
  for _, option in ipairs(OPTIONS) do
    if not new[option] then old[#old + 1] = option end
  end
  redis.call('HDEL', job, unpack(old))
end

-- Whether the job has to wait for one of these; not for itself, which would be for ever: its earlier life ends now.
local function must_wait(id, first, last)
  for i = first + 1, last do
    if ARGV[i] ~= id and not has_ended(ARGV[i], ARGV[first] == '1') then return true end
  end
end

local function defer(id, queue, due, first, last)
  redis.call('HSET', 'rq:job:' .. id, 'status', 'deferred')
  if due then redis.call('HSET', 'rq:job:' .. id, 'rqjobs_due', due) end
  redis.call('ZADD', 'rq:deferred:' .. queue, string.format('%d', clock()), id)
  for i = first + 1, last do
    if ARGV[i] ~= id then
      redis.pcall('SADD', 'rq:job:' .. ARGV[i] .. ':dependents', id)
      redis.call('SADD', 'rq:job::' .. id .. ':dependencies', ARGV[i])
    end
  end
end

-- The key of the wrong type that would keep one of the jobs out of its place.
local function obstacle()
  local checked, at = {}, 2
  local function is_wrong(key, kind)
    if checked[key] == nil then checked[key] = not fits(key, kind) end
    return checked[key]
  end
  while at <= #ARGV do
    local queue, id, parents, fields = ARGV[at], ARGV[at + 1], at + 7, at + 7 + ARGV[at + 5]
    local keys = {['rq:queue:' .. queue] = 'list'}
    if tonumber(ARGV[at + 2]) then keys['rq:scheduled:' .. queue] = 'zset' end
    if fields > parents then
      keys['rq:deferred:' .. queue], keys['rq:job::' .. id .. ':dependencies'] = 'zset', 'set'
      for i = parents + 1, fields - 1 do keys['rq:job:' .. ARGV[i] .. ':dependents'] = 'set' end
    end
    if ARGV[at + 4] ~= '1' then keys['rq:job:' .. id] = 'hash' end
    for key, kind in pairs(keys) do
      if is_wrong(key, kind) then return key end
    end
    at = fields + ARGV[at + 6]
  end
end

local wrong = obstacle()
if wrong then return redis.error_reply('ERR the key ' .. wrong .. ' has the wrong type, so no job gets there') end

local at, known, deferred = 2, {}, {}
while at <= #ARGV do
  local queue, id, place, ttl = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local job, parents, fields = 'rq:job:' .. id, at + 7, at + 7 + ARGV[at + 5]
  local last = fields + ARGV[at + 6] - 1
  local before = ARGV[at + 4] ~= '1' and standing(id)
  local waiting = fields > parents and must_wait(id, parents, fields - 1)
  local due = tonumber(place)
  redis.call('HSET', job, unpack(ARGV, fields, last))
  if before then
    retire(id, before)
    forget(id, fields, last)
  end
  if ttl ~= '' then redis.call('EXPIRE', job, ttl) end
  if waiting then
    defer(id, queue, due and place, parents, fields - 1)
    deferred[#deferred + 1] = id
  elseif due then
    schedule(id, queue, place, ARGV[1])
  elseif place ~= 'nowhere' then
    redis.call(place == 'front' and 'LPUSH' or 'RPUSH', 'rq:queue:' .. queue, id)
  end
  if not known[queue] then redis.pcall('SADD', KEYS[1], 'rq:queue:' .. queue) end
  known[queue] = true
  at = last + 1
end
return deferred
