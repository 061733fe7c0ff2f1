-- What several scripts share; put in front of each. Keys of a job are made from its id and queue, because a script
-- learns of both only while it runs (so: no Redis Cluster).
--
-- The first write of every move is one that Redis refuses when its memory is full (HSET, LMOVE; not LREM or ZREM, which
-- free memory and are always let through): a script that is refused has then done nothing.

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

-- A time to live in whole seconds, or nil if `value` is none that Redis takes.
local function lifetime(value)
  local seconds = tonumber(value or '')
  if seconds and seconds >= 1 and seconds < 2 ^ 31 then return math.floor(seconds) end
end

-- The job is in nobody's hands any more; forget who had it.
local function drop(claims, queue, id, token)
  redis.call('LREM', claims, 1, id)
  if token then redis.call('ZREM', 'rq:wip:' .. queue, id .. ':' .. token) end
end

-- Why the holder of this token may not settle the job, if it may not; else nil, and whether it was canceled meanwhile.
local function refusal(claims, queue, id, token)
  local fields = read(id, 'rqjobs_token', 'rqjobs_settled', 'status')
  if not fields or (not fields[1] and not fields[3]) then
    drop(claims, queue, id, token)
    return 'gone'
  end
  if fields[1] ~= token then return fields[2] == token and 'already' or 'refused' end
  return nil, fields[3] == 'canceled'
end

-- Back to the front of its queue, as if it had never been taken.
local function put_back(queue, id)
  redis.call('HSET', 'rq:job:' .. id, 'status', 'queued', 'started_at', '', 'worker_name', '')
  redis.call('HDEL', 'rq:job:' .. id, 'rqjobs_token')
  local ttl = lifetime(read(id, 'ttl')[1])  -- it is waiting again, and the claim had stopped its clock
  if ttl then redis.call('EXPIRE', 'rq:job:' .. id, ttl) end
  redis.call('LPUSH', 'rq:queue:' .. queue, id)
  redis.call('SADD', 'rq:queues', 'rq:queue:' .. queue)
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

-- Put each job that is deferred behind this one, and behind nothing else that has not ended, into its queue; what RQ's
-- `enqueue_dependents` does. Returns their ids.
local function wake(id, iso, default_timeout)
  local dependents, woken = 'rq:job:' .. id .. ':dependents', {}
  for _, child in ipairs(members(dependents)) do
    local fields = read(child, 'origin', 'status', 'allow_dependency_failures', 'enqueue_at_front', 'timeout', 'ttl')
    local ready = fields and fields[1] and fields[2] == 'deferred'
    for _, parent in ipairs(ready and members('rq:job::' .. child .. ':dependencies') or {}) do
      ready = ready and has_ended(parent, fields[3] == '1')
    end
    if ready then
      redis.call(fields[4] == '1' and 'LPUSH' or 'RPUSH', 'rq:queue:' .. fields[1], child)
      redis.call('HSET', 'rq:job:' .. child, 'status', 'queued', 'enqueued_at', iso, 'timeout',
        fields[5] or default_timeout)
      if lifetime(fields[6]) then redis.call('EXPIRE', 'rq:job:' .. child, lifetime(fields[6])) end
      redis.call('SADD', 'rq:queues', 'rq:queue:' .. fields[1])
      redis.call('ZREM', 'rq:deferred:' .. fields[1], child)
      redis.call('SREM', dependents, child)
      woken[#woken + 1] = child
    end
  end
  return woken
end

-- Among the dead letters, with `trace` as RQ stores one; whoever sweeps next wakes what waits for it.
local function bury(queue, id, worker, trace, iso, default_ttl)
  local job, results = 'rq:job:' .. id, 'rq:results:' .. id
  local own = redis.pcall('HGET', job, 'failure_ttl')
  local kept = lifetime(type(own) == 'string' and own)
  redis.call('ZADD', 'rq:failed:' .. queue, own == '-1' and '+inf' or clock() + (kept or tonumber(default_ttl)), id)
  if type(own) == 'table' then return end  -- no hash stands under the job's key; there is nothing to write into
  redis.call('HSET', job, 'status', 'failed', 'ended_at', iso, 'origin', queue)
  redis.call('HDEL', job, 'rqjobs_token')
  redis.call('PERSIST', job)
  if redis.call('EXISTS', job .. ':dependents') == 1 then redis.call('SADD', 'rqjobs:waking', id) end
  if redis.pcall('XADD', results, 'MAXLEN', '~', 10, '*', 'type', 2, 'worker_name', worker, 'exc_string', trace).err then
    return
  end
  if kept then redis.call('EXPIRE', results, kept) end
end

-- Add now to the deaths of a job; returns how many count, those within the last `window` seconds.
local function count_death(id, window)
  local job, now, deaths = 'rq:job:' .. id, clock(), {}
  for moment in string.gmatch(redis.call('HGET', job, 'rqjobs_deaths') or '', '%d+') do
    if tonumber(moment) > now - tonumber(window) then deaths[#deaths + 1] = moment end
  end
  deaths[#deaths + 1] = string.format('%d', now)
  redis.call('HSET', job, 'rqjobs_deaths', table.concat(deaths, ','))
  return #deaths
end

local function waits(status) return status == 'queued' or status == 'started' or status == 'scheduled' end

