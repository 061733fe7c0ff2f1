-- Give a worker jobs to run: first what is in its hands without its knowledge, then new ones from its queues.
--
-- KEYS  1 rqjobs:claims:<me>   2 rqjobs:leases   then the queues, in the order of their priority
-- ARGV  1 me   2 how many it wants   3 now, as RQ writes it   4 traceback for a job that cannot be read
--       5 RQ's default failure_ttl   6 what the tokens begin with, never used before   7 its process,
--       or ""   then the ids that it holds
-- Promise: every id that leaves a queue is in the claims, or its job was gone, had ended, is in somebody's hands already,
-- waits elsewhere (it was enqueued again, there), or could not be read (then it is among the dead letters). What stands
-- in the claims and is not held is returned again, with a fresh token, so a lost reply loses nothing; what of it finds no
-- room goes back to the front of its queue, for another to run. A job under which a process died is given out alone.
-- Nothing is claimed without a live lease, while RQ is suspended, or if the name is another
-- process's by now (the lease is that one's then).
-- Returns {"ok", {id, queue, token, {field, value, …}}, …}, or {"no lease"}, or {"suspended"}.

local claims, me, room, iso = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
local lease = redis.pcall('ZSCORE', KEYS[2], me)  -- an error if somebody else wrote there
if type(lease) ~= 'string' or tonumber(lease) <= clock() then return {'no lease'} end
if ARGV[7] ~= '' and redis.pcall('HGET', 'rqjobs:process:' .. me, 'process') ~= ARGV[7] then return {'no lease'} end
if redis.call('EXISTS', 'rq:suspended') == 1 then return {'suspended'} end

local held, taken = {}, {'ok'}
for i = 8, #ARGV do held[ARGV[i]] = true end

local WANTED = {status = true, data = true, origin = true, rqjobs_token = true, rqjobs_crashes = true,
  worker_name = true}

-- Whether the job waits in another place than the one where its id was found, `queue`, or the claims if that is nil. Only
-- the id of a job that was there before can; the hash of one that was not has no worker_name.
local function waits_elsewhere(id, job, queue)
  if job.status ~= 'queued' or not queue then
    return (job.status ~= 'queued' or job.is_known) and stands(id, job.origin, job.status)
  end
  return job.origin and job.origin ~= queue and stands(id, job.origin, job.status)
end

-- The job behind an id: what of it matters here, or a "reason" why it is not to be run. An id that was pushed twice may
-- stand in somebody's hands already; in ours only if it did not just come from a queue, for then we do not know of it.
-- What is queued there although somebody has it was enqueued again meanwhile.
local function look(id, queue)
  if #id > 255 or string.find(id, '[^%w_-]') then return {reason = 'unreadable'} end  -- RQ's letters
  local fields = redis.pcall('HGETALL', 'rq:job:' .. id)
  if fields.err then return {reason = 'unreadable'} end
  local job = {fields = fields}
  for i = 1, #fields, 2 do
    if WANTED[fields[i]] and fields[i + 1] ~= '' then job[fields[i]] = fields[i + 1] end
    if fields[i] == 'worker_name' then job.is_known = true end
  end
  local status = job.status
  if #fields == 0 then
    job.reason = 'gone'
  elseif status == 'canceled' or status == 'finished' or status == 'failed' or status == 'stopped' then
    job.reason = 'ended'
  elseif not job.data then
    job.reason = 'unreadable'
  elseif waits_elsewhere(id, job, queue) then
    job.reason = 'elsewhere'
  elseif (status == 'started' or not queue)
      and is_held_by_another(id, not queue and me, job.rqjobs_token, job.worker_name) then
    job.reason = 'held'
  end
  return job
end

-- Note the job as begun, in RQ's own fields; it stands in the claims already. What a stock client, which enqueued it
-- again, left of its earlier life goes.
local function start(id, queue, job, from_queue)
  local token = ARGV[6] .. string.format('%02x', #taken)
  redis.call('HSET', 'rq:job:' .. id, 'status', 'started', 'started_at', iso, 'last_heartbeat', iso,
    'worker_name', me, 'rqjobs_token', token)
  if from_queue and job.rqjobs_token then
    drop_refused('rqjobs:claims:' .. (job.worker_name or ''), job.origin or queue, id, job.rqjobs_token,
      {token, nil, nil, nil, me})
  end
  if job.is_known then leave(id, job.origin or queue, 'scheduled', 'deferred', 'failed', 'canceled') end
  if job.origin ~= queue then redis.call('HSET', 'rq:job:' .. id, 'origin', queue) end
  redis.call('PERSIST', 'rq:job:' .. id)
  taken[#taken + 1] = {id, queue, token, job.fields}
  room = job.rqjobs_crashes and 0 or room - 1
  return id .. ':' .. token
end

local surplus, mine_before = {}, redis.pcall('LRANGE', claims, 0, -1)
if mine_before.err then redis.call('RENAME', claims, 'rqjobs:odd:' .. claims) end  -- somebody else wrote there
for _, id in ipairs(mine_before) do
  if not held[id] then
    held[id] = true
    local job = look(id)
    local queue = job.origin
    local before = queue and job.rqjobs_token  -- the reply that told of it was lost
    if not queue and not job.reason then job.reason = 'unreadable' end
    if not job.reason and (room == 0 or job.rqjobs_crashes and #taken > 1) then
      table.insert(surplus, 1, {id, queue, before})
    else
      if not job.reason then
        redis.pcall('ZADD', 'rq:wip:' .. queue, '+inf', start(id, queue, job))
      elseif job.reason == 'unreadable' then
        bury(queue or 'default', id, me, ARGV[4], iso, ARGV[5])
      end
      if job.reason then redis.call('LREM', claims, 0, id) end
      if before and job.reason ~= 'held' then redis.pcall('ZREM', 'rq:wip:' .. queue, id .. ':' .. before) end
    end
  end
end
for _, one in ipairs(surplus) do
  if put_back(one[2], one[1]) then drop(claims, one[2], one[1], one[3]) end
end

for i = 3, #KEYS do
  local queue = string.sub(KEYS[i], 10)
  while room > 0 do
    local ids = redis.pcall('LRANGE', KEYS[i], 0, room - 1)
    if #ids == 0 then break end  -- an error has none: the other queues go on
    local left, mine, jobs, unreadable = 0, {}, {}, {}
    for _, id in ipairs(ids) do
      local job = jobs[id] and {reason = 'held'} or look(id, queue)
      if job.rqjobs_crashes and not job.reason then
        if #taken + #mine > 1 then
          room = 0
          break
        end
        room = 1
      end
      left = left + 1
      if job.reason == 'unreadable' then
        unreadable[#unreadable + 1] = id
      elseif not job.reason then
        mine[#mine + 1] = id
        jobs[id] = job
        if #mine == room then break end
      end
    end
    if #mine > 0 then redis.call('RPUSH', claims, unpack(mine)) end  -- bounded: as many as there was room for
    for _, id in ipairs(unreadable) do bury(queue, id, me, ARGV[4], iso, ARGV[5]) end
    if left > 0 then redis.call('LTRIM', KEYS[i], left, -1) end
    if #mine > 0 then
      local entries = {}
      for _, id in ipairs(mine) do
        entries[#entries + 1] = '+inf'
        entries[#entries + 1] = start(id, queue, jobs[id], true)
      end
      redis.pcall('ZADD', 'rq:wip:' .. queue, unpack(entries))  -- bounded: as many as there was room for
    end
  end
end
return taken
