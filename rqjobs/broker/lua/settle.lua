-- Record the outcome of a job and drop its claim: all writes, or none.
--
-- KEYS  1 rqjobs:claims:<worker>
-- ARGV  1 job id   2 queue   3 token   4 the outcome for the job's dependents: "finished",
--       "failed", or "" if they continue to wait   5 now, as RQ writes it
--       6 RQ's default timeout, seconds   7 for a failure, its group (`count_failure`); else ""
--       8 for a failure with on_failed, the call (`note_failure`); else ""
--       then the writes: the number of a command's words, its words, and so on
-- Promise: the writes are applied only if the job still carries this token; the claim is dropped in
-- the same step. A second call with the token that settled the job does nothing. A job that was
-- canceled while it ran stays canceled. A write that cannot succeed is found before the first is
-- made; among the worker's statistics it is left out.
-- Returns "settled", "dependents left" (settled; its many dependents are left to
-- `enqueue_dependents.lua`), "already" (settled by this token before), "canceled", "gone" (the job
-- was deleted), or "refused" (the job has been claimed or enqueued again).

local claims, id, queue, token = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local outcome, iso, default_timeout = ARGV[4], ARGV[5], ARGV[6]
local failure_group, on_failed = ARGV[7], ARGV[8]
local FIRST_WRITE = 9
local job = 'rq:job:' .. id

-- The type of key that each command writes. "any" commands accept every type.
local KEY_TYPES = {}
for kind, commands in pairs({
  hash = 'HSET HMSET HSETNX HDEL HINCRBY HINCRBYFLOAT',
  set = 'SADD SREM SPOP',
  stream = 'XADD XDEL XTRIM',
  list = 'LPUSH RPUSH LPUSHX RPUSHX LPOP RPOP LREM LTRIM',
  string = 'SET SETEX PSETEX SETNX INCR INCRBY DECR DECRBY APPEND',
  zset = 'ZADD ZINCRBY ZREM ZREMRANGEBYSCORE ZREMRANGEBYRANK',
  any = 'DEL UNLINK EXPIRE PEXPIRE EXPIREAT PEXPIREAT PERSIST PUBLISH',
}) do
  for command in string.gmatch(commands, '%u+') do KEY_TYPES[command] = kind end
end
-- Statuses in which a job may be whose dependents continue to wait.
local ENDINGS = {failed = 'failed', stopped = 'stopped', canceled = 'canceled'}
local types = {}  -- of the keys, as the writes so far leave them

-- Whether a counter that the command increments holds something that is not a number.
local function counts_no_number(kind, key, field)
  if kind == 'zset' then return false end
  local before
  if kind == 'hash' then
    before = redis.pcall('HGET', key, field)
  else
    before = redis.pcall('GET', key)
  end
  return type(before) == 'string' and not tonumber(before)
end

-- Why Redis would refuse the command whose words are ARGV[first] to ARGV[last]; nil if it would
-- not.
local function problem(first, last)
  local command, key = string.upper(ARGV[first]), ARGV[first + 1]
  local kind = KEY_TYPES[command]
  if not kind or last - first > 6000 then
    return command .. ' of ' .. (last - first) .. ' words is not part of an outcome'
  end
  types[key] = types[key] or redis.call('TYPE', key).ok
  if command == 'DEL' or command == 'UNLINK' then
    for i = first + 1, last do types[ARGV[i]] = 'none' end
  elseif kind ~= 'any' and command ~= 'SET' and types[key] ~= 'none' and types[key] ~= kind then
    return 'the key ' .. key .. ' is a ' .. types[key] .. ', not a ' .. kind
  elseif string.find(command, 'INCR') or string.find(command, 'DECR') then
    if counts_no_number(kind, key, ARGV[first + 2]) then return key .. ' holds no number' end
  elseif command == 'EXPIRE' and math.abs(tonumber(ARGV[first + 2]) or 2 ^ 40) >= 2 ^ 31 then
    return ARGV[first + 2] .. ' is not a time to live'
  end
  if kind ~= 'any' then types[key] = kind end
end

-- Call `visit(first, last)` for each write, until it returns something.
local function each_write(visit)
  local at = FIRST_WRITE
  while at <= #ARGV do
    local last = at + tonumber(ARGV[at])
    local result = visit(at + 1, last)
    if result then return result end
    at = last + 1
  end
end

local reply, is_canceled, unique_key, keep, has_log = refusal(claims, queue, id, token)
if reply then return reply end
if is_canceled then
  mark_settled(claims, queue, id, token)
  if unique_key then forget_unique(id, unique_key) end
  count_event('canceled', queue, 1)
  return 'canceled'
end

local function has_ended_for_good(id)
  local status = (read_job(id, 'status') or {})[1]
  return not is_active(status) and status ~= 'deferred'
end

-- Keep the result that the writes have recorded with the flow of the job.
local function keep_recorded_result()
  local place = (read_job(id, 'rqjobs_flow') or {})[1]
  local entry = place and redis.pcall('XREVRANGE', 'rq:results:' .. id, '+', '-', 'COUNT', 1)[1]
  if not entry then return end
  local result
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'return_value' then result = entry[2][i + 1] end
  end
  keep_flow_result(id, place, result)
end

-- Count the run that has ended, and the job if its outcome has put it into its queue again.
local function count_run()
  local status = (read_job(id, 'status') or {})[1]
  local kind = outcome
  if kind == '' and (is_active(status) or status == 'deferred') then kind = 'retried' end
  if kind == '' then kind = ENDINGS[status] or 'finished' end
  local now = redis_time()
  count_event(kind, queue, 1, now)
  if status == 'queued' then count_event('enqueued', queue, 1, now) end
end

local left_out = {}
local obstacle = each_write(function(first, last)
  local reason = problem(first, last)
  if reason and string.sub(ARGV[first + 1], 1, 10) ~= 'rq:worker:' then return reason end
  left_out[first] = reason
end)
if obstacle then return redis.error_reply('ERR ' .. obstacle) end

mark_settled(claims, queue, id, token)
local dependents_left = outcome ~= '' and enqueue_dependents(id, outcome, iso, default_timeout)
local failure
each_write(function(first, last)
  local answer = not left_out[first] and redis.pcall(unpack(ARGV, first, last))
  local is_error = type(answer) == 'table' and answer.err
  if is_error and ARGV[first] ~= 'PUBLISH' then  -- a user without the right to publish may settle
    failure = failure or answer
  end
end)
if outcome == 'failed' then  -- plain RQ may requeue it, and only the first run can expire
  redis.pcall('HDEL', job, 'rqjobs_expires')
end
-- The outcome may have deleted the job, so its key was read before.
if unique_key and has_ended_for_good(id) then end_unique(id, unique_key, keep) end
if outcome == 'finished' then keep_recorded_result() end
if failure_group ~= '' then count_failure(id, failure_group) end
if on_failed ~= '' then note_failure(id, token, on_failed) end
count_run()
expire_with(job, 'rq:results:' .. id)
if has_log then expire_with(job, 'rqjobs:log:' .. id) end
if outcome == '' and has_ended_for_good(id) then dependents_left = note_unfinished(id) end
if not dependents_left and outcome ~= '' then expire_with(job, job .. ':dependents') end
if failure then return failure end  -- unexpected; the job is settled all the same
return dependents_left and 'dependents left' or 'settled'
