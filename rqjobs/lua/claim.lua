-- Give a worker jobs to run: first what is in its hands without its knowledge, then new ones from its queues.
--
-- KEYS  1 rqjobs:claims:<me>   2 rqjobs:workers   then the queues, in the order of their priority
-- ARGV  1 me   2 how many it may hold   3 now, as RQ writes it   4 traceback for a job that cannot be read
--       5 RQ's default failure_ttl   6 how many it holds, then their ids   then fresh tokens, as many as it may hold
-- Promise: every id that leaves a queue is in the claims, or its job was gone, had ended, or could not be read (then
-- it is among the dead letters). What stands in the claims and is not held is returned again, with a fresh token, so
-- a lost reply loses nothing; what of it finds no room goes back to the front of its queue, for another to run.
-- Nothing is claimed without a live lease, or while RQ is suspended.
-- Returns {"ok", {id, queue, token, {field, value, …}}, …}, or {"no lease"}, or {"suspended"}.

local claims, me, room, iso = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
local lease = redis.call('ZSCORE', KEYS[2], me)
if not lease or tonumber(lease) <= clock() then return {'no lease'} end
if redis.call('EXISTS', 'rq:suspended') == 1 then return {'suspended'} end

local held, tokens = {}, 6 + tonumber(ARGV[6])
for i = 7, tokens do held[ARGV[i]] = true end
room = room - tonumber(ARGV[6])
local taken = {'ok'}

local function take(id, queue, known)
  local fields = redis.pcall('HGETALL', 'rq:job:' .. id)
  if fields.err then
    bury(queue, id, me, ARGV[4], iso, ARGV[5])
    return false
  end
  local job = {}
  for i = 1, #fields, 2 do job[fields[i]] = fields[i + 1] end
  if #fields == 0 then return false end
  queue = queue or job.origin
  local before = known and queue and (job.rqjobs_token or '') ~= '' and job.rqjobs_token  -- a claim whose reply was lost
  local status = job.status or 'queued'
  if status == 'canceled' or status == 'finished' or status == 'failed' or status == 'stopped' then
    if before then redis.call('ZREM', 'rq:wip:' .. queue, id .. ':' .. before) end
    return false
  end
  if not job.data or not queue then
    bury(queue or 'default', id, me, ARGV[4], iso, ARGV[5])
    return false
  end
  tokens = tokens + 1
  local token = ARGV[tokens]
  redis.call('HSET', 'rq:job:' .. id, 'status', 'started', 'started_at', iso, 'last_heartbeat', iso,
    'worker_name', me, 'rqjobs_token', token)
  if before then redis.call('ZREM', 'rq:wip:' .. queue, id .. ':' .. before) end
  redis.call('PERSIST', 'rq:job:' .. id)
  redis.call('ZADD', 'rq:wip:' .. queue, '+inf', id .. ':' .. token)
  taken[#taken + 1] = {id, queue, token, fields}
  return true
end

local surplus = {}
for _, id in ipairs(redis.call('LRANGE', claims, 0, -1)) do
  if held[id] then
    -- it knows of that one
  elseif room == 0 then
    table.insert(surplus, 1, id)
  elseif take(id, nil, true) then
    room = room - 1
  else
    redis.call('LREM', claims, 0, id)
  end
end
for _, id in ipairs(surplus) do
  local fields = read(id, 'origin', 'status', 'rqjobs_token')
  local queue = fields and fields[1]
  if queue and waits(fields[2]) then put_back(queue, id) end
  drop(claims, queue, id, queue and fields[3])
end
for i = 3, #KEYS do
  while room > 0 do
    local id = redis.call('LMOVE', KEYS[i], claims, 'LEFT', 'RIGHT')
    if not id then break end
    if take(id, string.sub(KEYS[i], 10), false) then
      room = room - 1
    else
      redis.call('LREM', claims, -1, id)
    end
  end
end
return taken
