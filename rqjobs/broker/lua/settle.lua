-- Record the outcome of a job, and let go of it: all of these writes, or none.
--
-- KEYS  1 rqjobs:claims:<me>
-- ARGV  1 job id   2 queue   3 token   4 what the job counts as for those that wait for it: "finished", "failed", or ""
--       if they go on waiting   5 now, as RQ writes it   6 RQ's default timeout, seconds
--       then the writes: the number of a command's words, its words, and so on
-- Promise: the writes are applied if and only if the job still carries this token; the claim is dropped in the same
-- step. Asked again with the token that settled the job, it says so and does nothing. A job that was canceled while
-- it ran stays canceled. A write that cannot succeed is found before the first is made; of the worker's statistics it is
-- left out.
-- Returns "settled", "dependents left" (settled, and jobs that wait for it are left to `enqueue_dependents.lua`), "already" (by this token),
-- "canceled", "gone" (the job was deleted), or "refused" (the claim was taken back, the job is somebody else's now).

local id, queue, token = ARGV[1], ARGV[2], ARGV[3]
local job = 'rq:job:' .. id

-- What a command writes into; "any" is deleted or given a time to live, whatever it is.
local WRITES = {}
for kind, commands in pairs({
  hash = 'HSET HMSET HSETNX HDEL HINCRBY HINCRBYFLOAT', set = 'SADD SREM SPOP', stream = 'XADD XDEL XTRIM',
  list = 'LPUSH RPUSH LPUSHX RPUSHX LPOP RPOP LREM LTRIM', string = 'SET SETEX PSETEX SETNX INCR INCRBY DECR DECRBY APPEND',
  zset = 'ZADD ZINCRBY ZREM ZREMRANGEBYSCORE ZREMRANGEBYRANK',
  any = 'DEL UNLINK EXPIRE PEXPIRE EXPIREAT PEXPIREAT PERSIST PUBLISH',
}) do
  for command in string.gmatch(commands, '%u+') do WRITES[command] = kind end
end
local types = {}  -- of the keys, as they are when the writes so far have been made

-- Why Redis would refuse the command whose words are ARGV[first] to ARGV[last]; nil if it would not.
local function trouble(first, last)
  local command, key = string.upper(ARGV[first]), ARGV[first + 1]
  local wanted = WRITES[command]
  if not wanted or last - first > 6000 then return command .. ' of ' .. (last - first) .. ' words is no outcome' end
  types[key] = types[key] or redis.call('TYPE', key).ok
  if command == 'DEL' or command == 'UNLINK' then
    for i = first + 1, last do types[ARGV[i]] = 'none' end
  elseif wanted ~= 'any' and command ~= 'SET' and types[key] ~= 'none' and types[key] ~= wanted then
    return 'the key ' .. key .. ' is a ' .. types[key] .. ' and no ' .. wanted
  elseif string.find(command, 'INCR') or string.find(command, 'DECR') then
    local read = wanted == 'hash' and {'HGET', key, ARGV[first + 2]} or {'GET', key}
    local before = wanted ~= 'zset' and redis.pcall(unpack(read))
    if type(before) == 'string' and not tonumber(before) then return key .. ' counts with no number' end
  elseif command == 'EXPIRE' and math.abs(tonumber(ARGV[first + 2]) or 2 ^ 40) >= 2 ^ 31 then
    return ARGV[first + 2] .. ' is no time to live'
  end
  if wanted ~= 'any' then types[key] = wanted end
end

local reply, canceled = refusal(KEYS[1], queue, id, token)
if reply then return reply end
local skipped, at = {}, canceled and #ARGV + 1 or 7
while at <= #ARGV do
  local last = at + tonumber(ARGV[at])
  local why = trouble(at + 1, last)
  if why and string.sub(ARGV[at + 2], 1, 10) ~= 'rq:worker:' then return redis.error_reply('ERR ' .. why) end
  skipped[at] = why
  at = last + 1
end

redis.call('HSET', job, 'rqjobs_settled_token', token, 'rqjobs_token', '')
drop(KEYS[1], queue, id, token)
if canceled then return 'canceled' end
local waking = ARGV[4] ~= '' and wake(id, ARGV[4], ARGV[5], ARGV[6])
local failed
at = 7
while at <= #ARGV do
  local last = at + tonumber(ARGV[at])
  local answer = not skipped[at] and redis.pcall(unpack(ARGV, at + 1, last))
  local refused = type(answer) == 'table' and answer.err and ARGV[at + 1] ~= 'PUBLISH'  -- not every user may do that
  failed = failed or refused and answer
  at = last + 1
end
outlive_not(job, 'rq:results:' .. id)
if not waking and ARGV[4] ~= '' then outlive_not(job, job .. ':dependents') end
return failed or waking and 'dependents left' or 'settled'  -- nothing above should have failed; the job has ended all the same
