-- Enqueue the jobs of a schedule's due ticks, or one job outside its rule.
--
-- KEYS  1 rqjobs:schedules   2 the schedule's hash   3 the fields of its jobs   4 its runs
--       5 their outcomes   6 rqjobs:schedules:unfinished   7 queue   8 rq:queues
--       9 rqjobs:outbox, if the run is a row of the outbox
-- ARGV  1 name   2 its revision
--       3 its next tick as the caller has read it; "" for a job outside the rule
--       4 the tick that follows the due ones, "" if none does   5 its due time, Unix seconds
--       6 now, as RQ writes it   7 "1": a job is enqueued even if an earlier one has not ended
--       8 number of ticks that were missed and make no job   9 the last due tick
--       10 number of runs to remember   then pairs of a tick and its job's id; then, for a row, the
--       words of `take_row`
-- Promise: a tick makes at most one job, however many schedulers run, and wherever the caller or
-- the scheduler before it died. The jobs are enqueued and the schedule moves to its next tick in
-- one step, if it is still where the caller has read it. No tick is early by Redis's clock. A tick
-- whose unique key is taken makes no job, and counts as skipped because of an overlap.
-- Returns {status, number of jobs, number of ticks skipped because of an overlap}. Only "done" has
-- changed anything. "changed": the schedule was changed, paused or run by another scheduler. "wrong
-- type": the key of its queue, its runs, their outcomes, or rq:queues has the wrong type. The run of a
-- row is made once; otherwise its status is "already moved" or "read too long ago".

local row, reason = take_row(KEYS[9])
if reason then return {reason, 0, 0} end
local schedules_key, schedule_key, runs_key, outcomes_key = KEYS[1], KEYS[2], KEYS[4], KEYS[5]
local unfinished_key, queue_key = KEYS[6], KEYS[7]
local name, revision, first, following, following_due = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local iso, may_overlap, missed = ARGV[6], ARGV[7] == '1', tonumber(ARGV[8])
local last, runs_kept = ARGV[9], tonumber(ARGV[10])
local by_rule, now = first ~= '', redis_time()

local stored = redis.call('HMGET', schedule_key, 'revision', 'state', 'next', 'runs_left',
  'made', 'missed', 'overlapped', 'undeclared_since')
local job = redis.call('HGETALL', KEYS[3])
if stored[1] ~= revision or #job == 0 then return {'changed', 0, 0} end
if #job > 6000 then return {'changed', 0, 0} end  -- more than Lua can unpack
local is_ticking = stored[2] == 'active' and (stored[8] or '') == ''
if by_rule then
  if not is_ticking then redis.call('ZADD', schedules_key, 'XX', '+inf', name) end
  local due = tonumber(redis.call('ZSCORE', schedules_key, name) or '')
  if not is_ticking or stored[3] ~= first or not due or due > now then return {'changed', 0, 0} end
end
if not fits(runs_key, 'list') or not fits(outcomes_key, 'hash') or not fits(queue_key, 'list')
    or not fits(KEYS[8], 'set') then
  return {'wrong type', 0, 0}
end
-- All schedules share this key. If its type is wrong, only outcomes are lost.
local notes_unfinished = fits(unfinished_key, 'hash')

local function has_unfinished_job()
  for _, run in ipairs(redis.call('LRANGE', runs_key, 0, -1)) do
    local fields = read_job(string.match(run, '%S*$'), 'status')
    if fields and (is_active(fields[1]) or fields[1] == 'deferred') then return true end
  end
end

local options = {}
for i = 1, #job, 2 do options[job[i]] = job[i + 1] end
local unique_key = options.rqjobs_unique
if unique_key and not fits('rqjobs:unique', 'hash') then return {'wrong type', 0, 0} end

local function remember(tick, id)
  if notes_unfinished then redis.call('HSET', unfinished_key, id, name) end
  if tick == '' then tick = 'now' end
  redis.call('LPUSH', runs_key, tick .. ' ' .. string.format('%.3f', now) .. ' ' .. id)
  while redis.call('LLEN', runs_key) > runs_kept do
    local old = string.match(redis.call('RPOP', runs_key), '%S*$')
    redis.call('HDEL', outcomes_key, old)
    if notes_unfinished then redis.call('HDEL', unfinished_key, old) end
  end
end

local function enqueue(tick, id)
  local key = 'rq:job:' .. id
  if redis.call('EXISTS', key) == 1 then return false end  -- another job has this id
  redis.call('HSET', key, 'status', 'queued', 'created_at', iso, 'enqueued_at', iso,
    'rqjobs_schedule', name, unpack(job))
  if unique_key then redis.call('HSET', 'rqjobs:unique', unique_key, id) end
  if options.rqjobs_expires then start_expiry(id, options.rqjobs_expires, now) end
  if options.rqjobs_limit and options.enqueue_at_front == '1' then
    redis.call('HSET', key, 'rqjobs_woken', '1')  -- it is at the front of its line too
  end
  if ttl_seconds(options.ttl) then redis.call('EXPIRE', key, ttl_seconds(options.ttl)) end
  redis.call(options.enqueue_at_front == '1' and 'LPUSH' or 'RPUSH', queue_key, id)
  redis.call('SADD', KEYS[8], queue_key)
  remember(tick, id)
  return true
end

local made, skipped, runs_left = 0, 0, tonumber(stored[4] or '')
for i = 11, #ARGV, 2 do
  local tick, id = ARGV[i], ARGV[i + 1]
  if by_rule and runs_left and runs_left < 1 then break end
  local overlaps = by_rule and not may_overlap and has_unfinished_job()
  if overlaps or unique_key and unique_holder(unique_key) then
    skipped = skipped + 1
  elseif enqueue(tick, id) then
    made = made + 1
    if runs_left and by_rule then runs_left = runs_left - 1 end
  else
    missed = missed + 1
  end
end
if made > 0 then count_event('enqueued', string.sub(queue_key, 10), made, now) end
if not by_rule then
  if made > 0 then mark_row(row) end
  return {'done', made, skipped}
end

local is_over = following == '' or (runs_left and runs_left < 1)
redis.call('HSET', schedule_key, 'last', last, 'next', is_over and '' or following,
  'state', is_over and 'ended' or 'active')
if runs_left then redis.call('HSET', schedule_key, 'runs_left', runs_left) end

local function add(field, before, count)
  if count > 0 then
    local total = (tonumber(before or '') or 0) + count
    redis.call('HSET', schedule_key, field, string.format('%.0f', total))
  end
end

add('made', stored[5], made)
add('missed', stored[6], missed)
add('overlapped', stored[7], skipped)
redis.call('ZADD', schedules_key, is_over and '+inf' or following_due, name)
return {'done', made, skipped}
