-- Let the jobs run that waited for a buried one and may run after its failure.
--
-- KEYS  1 rqjobs:waking
-- ARGV  1 id of the buried job   2 now, as RQ writes it   3 default timeout, seconds
-- Promise: a job goes from the deferred set into its queue if it is deferred still, allows failures, and all that it
-- waits for has ended so; the buried one is not asked about again. Asked twice, nothing happens the second time.
-- Returns the ids that were enqueued.

local function members(key)
  local ids = redis.pcall('SMEMBERS', key)
  return ids.err and {} or ids
end

local function has_ended(id)
  local status = (read(id, 'status') or {})[1]
  return not status or status == 'finished' or status == 'failed'
end

local function may_run(child)
  for _, id in ipairs(members('rq:job::' .. child .. ':dependencies')) do
    if not has_ended(id) then return false end
  end
  return true
end

local dependents, woken = 'rq:job:' .. ARGV[1] .. ':dependents', {}
for _, child in ipairs(has_ended(ARGV[1]) and members(dependents) or {}) do
  local fields = read(child, 'origin', 'status', 'allow_dependency_failures', 'enqueue_at_front', 'timeout', 'ttl')
  if fields and fields[1] and fields[2] == 'deferred' and fields[3] == '1' and may_run(child) then
    redis.call(fields[4] == '1' and 'LPUSH' or 'RPUSH', 'rq:queue:' .. fields[1], child)
    redis.call('HSET', 'rq:job:' .. child, 'status', 'queued', 'enqueued_at', ARGV[2], 'timeout', fields[5] or ARGV[3])
    if lifetime(fields[6]) then redis.call('EXPIRE', 'rq:job:' .. child, lifetime(fields[6])) end
    redis.call('SADD', 'rq:queues', 'rq:queue:' .. fields[1])
    redis.call('ZREM', 'rq:deferred:' .. fields[1], child)
    redis.call('SREM', dependents, child)
    woken[#woken + 1] = child
  end
end
redis.call('SREM', KEYS[1], ARGV[1])
return woken
