-- What several scripts share; put in front of each. Keys of a job are made from its id and queue, because a script
-- learns of both only while it runs (so: no Redis Cluster).
--
-- The first write of every move is one that Redis refuses when its memory is full (HSET, LMOVE; not LREM or ZREM, which
-- free memory and are always let through): a script that is refused has then done nothing.
--
-- No script fails after its first write, for Lua takes nothing back. What the move consists of is checked before (`fits`);
-- what others only look at (rq:wip, rq:queues, a registry of ended jobs) is written with `pcall`, and may fail. Lua puts
-- some 7,900 words on its stack at most: `unpack` is only given what is bounded well below that.

local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

-- Fields of a job's hash, or nil if there is no such hash (something else may stand under its key).
local function read(id, ...)
  local fields = redis.pcall('HMGET', 'rq:job:' .. id, ...)
  if fields.err then return nil end
  for i, field in ipairs(fields) do
    if field == '' then fields[i] = false end
  end
  return fields
end

-- Whether something of this type stands under the key, or nothing.
local function fits(key, wanted)
  local kind = redis.call('TYPE', key).ok
  return kind == wanted or kind == 'none'
end

-- A time to live in whole seconds, or nil if `value` is none that Redis takes.
local function lifetime(value)
  local seconds = tonumber(value or '')
  if seconds and seconds >= 1 and seconds < 2 ^ 31 then return math.floor(seconds) end
end

-- The job is in nobody's hands any more; forget who had it.
local function drop(claims, queue, id, token)
  redis.pcall('LREM', claims, 1, id)
  if token then redis.pcall('ZREM', 'rq:wip:' .. queue, id .. ':' .. token) end
end

-- Let what belongs to a job live exactly as long as its hash does.
local function outlive_not(job, key)
  local left = redis.call('PTTL', job)
  if left > 0 then
    redis.call('PEXPIRE', key, left)
  elseif left == -1 then
    redis.call('PERSIST', key)
  else
    redis.call('DEL', key)
  end
end

-- An id has one life: whoever enqueues it again, by whatever means, ends the run in progress. A script that puts a job
-- into a place asks for its `standing` first, writes the hash, and then calls `retire` with that. What a stock client
-- writes does not, and is seen when the job is claimed, promoted or settled: its status is not "started", and it really
-- `stands` where the status says. (A stale save() writes the status only.)

-- Where the hash says that a job is, and who has it; nil if there is no such job.
local function standing(id)
  local fields = read(id, 'origin', 'status', 'worker_name', 'rqjobs_token')
  if fields and (fields[1] or fields[2] or fields[4]) then
    return {queue = fields[1] or '', status = fields[2], worker = fields[3], token = fields[4]}
  end
end

local function stands(id, queue, status)
  local found
  if status == 'queued' then
    found = queue and redis.pcall('LPOS', 'rq:queue:' .. queue, id)
  elseif status == 'scheduled' or status == 'deferred' then
    found = queue and redis.pcall('ZSCORE', 'rq:' .. status .. ':' .. queue, id)
  end
  return type(found) == 'number' or type(found) == 'string'
end

-- The run in progress, if there is one, has lost its job.
local function revoke(id, before)
  if not before.token then return end
  redis.call('HDEL', 'rq:job:' .. id, 'rqjobs_token')
  drop('rqjobs:claims:' .. (before.worker or ''), before.queue, id, before.token)
end

local function leave(id, queue, ...)
  for _, place in ipairs({...}) do redis.pcall('ZREM', 'rq:' .. place .. ':' .. queue, id) end
end

-- The job is in no place any more, and in nobody's hands.
local function retire(id, before)
  revoke(id, before)
  if before.status == 'queued' then redis.pcall('LREM', 'rq:queue:' .. before.queue, 0, id) end
  leave(id, before.queue, 'scheduled', 'deferred', 'finished', 'failed', 'canceled')
  for _, ours in ipairs({'crashed', 'stopped'}) do redis.pcall('ZREM', 'rqjobs:' .. ours .. ':' .. before.queue, id) end
  redis.call('HDEL', 'rq:job:' .. id, 'rqjobs_due')
end

-- Whether the job is in the hands of another worker than `me`.
local function is_held_by_another(id, me, token, worker)
  return token and worker and worker ~= me and type(redis.pcall('LPOS', 'rqjobs:claims:' .. worker, id)) == 'number'
end

-- The claim of a run whose outcome is refused; the job's next one stays if it is in the same hands.
local function drop_refused(claims, queue, id, token, fields)
  redis.pcall('ZREM', 'rq:wip:' .. queue, id .. ':' .. token)
  local current, status, origin, worker = fields[1], fields[3], fields[4], fields[5]
  local next_is_here = current and worker == string.sub(claims, 15)
  if not current and status == 'queued' then next_is_here = not stands(id, origin, status) end  -- it came with a wake-up
  if not next_is_here then
    redis.pcall('LREM', claims, 0, id)
  elseif type(redis.pcall('LPOS', claims, id, 'RANK', 2)) == 'number' then
    redis.call('LREM', claims, 1, id)
  end
end

-- Why the holder of this token may not settle the job, if it may not; else nil, and whether it was canceled meanwhile.
local function refusal(claims, queue, id, token)
  local fields = read(id, 'rqjobs_token', 'rqjobs_settled_token', 'status', 'origin', 'worker_name')
  if not fields or (not fields[1] and not fields[3]) then
    drop(claims, queue, id, token)
    return 'gone'
  end
  if fields[1] == token then
    if not stands(id, fields[4], fields[3]) then return nil, fields[3] == 'canceled' end
    redis.call('HDEL', 'rq:job:' .. id, 'rqjobs_token')  -- a stock client has enqueued it again
    fields[1] = false
  elseif fields[2] == token then
    return 'already'
  end
  drop_refused(claims, queue, id, token, fields)
  return 'refused'
end

-- Back to the front of its queue, as if it had never been taken. False, and nothing done, if there can be no such queue.
local function put_back(queue, id)
  if not fits('rq:queue:' .. queue, 'list') then return false end
  redis.call('HSET', 'rq:job:' .. id, 'status', 'queued', 'started_at', '', 'worker_name', '')
  redis.call('HDEL', 'rq:job:' .. id, 'rqjobs_token')
  local ttl = lifetime(read(id, 'ttl')[1])  -- it is waiting again, and the claim had stopped its clock
  if ttl then redis.call('EXPIRE', 'rq:job:' .. id, ttl) end
  redis.call('LPUSH', 'rq:queue:' .. queue, id)
  redis.pcall('SADD', 'rq:queues', 'rq:queue:' .. queue)
  return true
end

local function members(key)
  local ids = redis.pcall('SMEMBERS', key)
  return ids.err and {} or ids
end

-- Whether a job that waits for this one need not wait any longer; RQ counts one that is gone as finished.
local function has_ended(id, failures_allowed)
  local status = (read(id, 'status') or {})[1]
  return not status or status == 'finished' or (failures_allowed and status == 'failed')
end

-- Into the scheduled set; the scheduler is told if the job is due sooner than it looks by itself.
local function schedule(id, queue, due, look_seconds)
  redis.call('ZADD', 'rq:scheduled:' .. queue, due, id)
  if tonumber(due) < clock() + tonumber(look_seconds) then redis.pcall('PUBLISH', 'rqjobs:wakeup:' .. queue, due) end
end

-- Put a job that is deferred behind parent `id` into its queue, or into the scheduled set if it was delayed too, unless it
-- waits for another one as well; `as` is what the parent counts as. Returns whether it was done.
local function wake_one(child, id, as, iso, default_timeout)
  local fields = read(child, 'origin', 'status', 'allow_dependency_failures', 'enqueue_at_front', 'timeout', 'ttl',
    'rqjobs_due')
  if not fields or fields[2] ~= 'deferred' or not stands(child, fields[1], fields[2]) then return false end
  for _, parent in ipairs(members('rq:job::' .. child .. ':dependencies')) do
    local ended = parent == id and as == 'finished' or has_ended(parent, fields[3] == '1')
    if not ended and not (parent == id and as == 'failed' and fields[3] == '1') then return false end
  end
  local due, before = tonumber(fields[7] or ''), standing(child)
  local status = due and due > clock() and 'scheduled' or 'queued'
  if not fits('rq:queue:' .. fields[1], 'list') or not fits('rq:scheduled:' .. fields[1], 'zset') then return false end
  redis.call('HSET', 'rq:job:' .. child, 'status', status, 'enqueued_at', iso, 'timeout', fields[5] or default_timeout)
  if lifetime(fields[6]) then redis.call('EXPIRE', 'rq:job:' .. child, lifetime(fields[6])) end
  revoke(child, before)
  if status == 'scheduled' then
    schedule(child, fields[1], fields[7], '+inf')
  else
    redis.call(fields[4] == '1' and 'LPUSH' or 'RPUSH', 'rq:queue:' .. fields[1], child)
  end
  redis.pcall('SADD', 'rq:queues', 'rq:queue:' .. fields[1])
  redis.pcall('ZREM', 'rq:deferred:' .. fields[1], child)
  redis.call('SREM', 'rq:job:' .. id .. ':dependents', child)
  return true
end

-- Put each job that is deferred behind this one, which ends `as` finished or failed, and behind nothing else that has not
-- ended, into its queue; what RQ's `enqueue_dependents` does. More than a hundred would hold up everybody else: they are
-- noted in rqjobs:ended-parents, for `enqueue_dependents.lua`. Returns whether they were.
local function wake(id, as, iso, default_timeout)
  local dependents = 'rq:job:' .. id .. ':dependents'
  if redis.call('TYPE', dependents).ok ~= 'set' then return false end
  if redis.call('SCARD', dependents) > 100 and fits('rqjobs:ended-parents', 'set') then
    redis.call('SADD', 'rqjobs:ended-parents', id .. ':' .. as)
    return true
  end
  for _, child in ipairs(members(dependents)) do wake_one(child, id, as, iso, default_timeout) end
  return false
end

-- Among the dead letters, with `trace` as RQ stores one; whoever sweeps next wakes what waits for it.
local function bury(queue, id, worker, trace, iso, default_ttl)
  local job, results = 'rq:job:' .. id, 'rq:results:' .. id
  local own = redis.pcall('HGET', job, 'failure_ttl')
  local kept = lifetime(type(own) == 'string' and own) or tonumber(default_ttl)
  redis.pcall('ZADD', 'rq:failed:' .. queue, own == '-1' and '+inf' or clock() + kept, id)
  if type(own) == 'table' then return end  -- no hash stands under the job's key; there is nothing to write into
  redis.call('HSET', job, 'status', 'failed', 'ended_at', iso, 'origin', queue)
  redis.call('HDEL', job, 'rqjobs_token')
  redis.call('PERSIST', job)
  if own ~= '-1' then redis.call('EXPIRE', job, kept) end
  redis.pcall('XADD', results, 'MAXLEN', '~', 10, '*', 'type', 2, 'worker_name', worker, 'exc_string', trace)
  outlive_not(job, results)
  if redis.call('EXISTS', job .. ':dependents') == 1 then redis.pcall('SADD', 'rqjobs:ended-parents', id) end
end

-- Add now to the deaths of a job; returns how many count, those within the last `window` seconds.
local function count_death(id, window)
  local job, now, deaths = 'rq:job:' .. id, clock(), {}
  for moment in string.gmatch(redis.call('HGET', job, 'rqjobs_crashes') or '', '%d+') do
    if tonumber(moment) > now - tonumber(window) then deaths[#deaths + 1] = moment end
  end
  deaths[#deaths + 1] = string.format('%d', now)
  redis.call('HSET', job, 'rqjobs_crashes', table.concat(deaths, ','))
  return #deaths
end

-- The jobs of a queue that somebody has stopped. RQ keeps them among its failed jobs, and its tools may take them from
-- there, so what a job's hash says counts.
local function stopped_in(queue)
  local found = {}
  for _, id in ipairs(redis.pcall('ZRANGE', 'rqjobs:stopped:' .. queue, 0, -1)) do  -- an error has no members
    local there = type(redis.pcall('ZSCORE', 'rq:failed:' .. queue, id)) == 'string'
    local fields = there and read(id, 'status')
    if fields and fields[1] == 'stopped' then found[#found + 1] = id end
  end
  return found
end

local function waits(status) return status == 'queued' or status == 'started' or status == 'scheduled' end

