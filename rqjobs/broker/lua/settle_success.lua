-- Record the plain success of a job and drop its claim: all writes, or none. This is `settle.lua`
-- for the most frequent outcome.
--
-- KEYS  1 rqjobs:claims:<worker>
-- ARGV  1 job id   2 queue   3 token   4 worker   5 start and 6 end, as RQ writes them
--       7 start and 8 end, Unix times   9 seconds for which the result is kept, -1 for no limit
--       10 the score of the job among RQ's finished jobs   11 "1" if it had dependencies
--       12 RQ's default timeout, seconds   13 the result as RQ stores it, if there is one
-- Promise: as `settle.lua`. Jobs that depended on this job alone are in their queues, or, if they
-- are many, noted in rqjobs:ended-parents.
-- Returns as `settle.lua`.
-- With policies.lua in front it is the script for jobs with policies.

local claims, id, queue, token, worker = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local started_iso, ended_iso, started, ended = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local ttl, registry_score, had_dependencies = tonumber(ARGV[9]), ARGV[10], ARGV[11] == '1'
local default_timeout, return_value = ARGV[12], ARGV[13]
local job, results, registry = 'rq:job:' .. id, 'rq:results:' .. id, 'rq:finished:' .. queue
if ttl >= 0 and not ttl_seconds(ttl) then
  return redis.error_reply('ERR no such time to live: ' .. ARGV[9])
end
local reply, is_canceled, _, _, has_log = refusal(claims, queue, id, token)
if reply then return reply end
if is_canceled then
  mark_settled(claims, queue, id, token)
  if end_policies then end_policies(id) end
  count_event('canceled', queue, 1)
  return 'canceled'
end

local added = redis.pcall('ZADD', registry, registry_score, id)
if type(added) == 'table' then return added end  -- an error

-- Redis allocates 4 KiB for a new stream at its first entry, which takes most of this script's
-- time. A copy of a stream has only the memory that it needs.
local result = {'type', 1, 'worker_name', worker, 'execution_id', token,
  'execution_started_at', started, 'execution_ended_at', ended}
if return_value then
  result[11] = 'return_value'
  result[12] = return_value
end
local entry = redis.pcall('XADD', 'rqjobs:result', '*', unpack(result))
local is_copied = redis.pcall('COPY', 'rqjobs:result', results) == 1
redis.call('DEL', 'rqjobs:result')
if not is_copied then
  added = redis.pcall('XADD', results, 'MAXLEN', '~', 10, '*', unpack(result))
  if added.err then  -- the key has the wrong type; undo the only write
    redis.call('ZREM', registry, id)
    return added
  end
end

redis.call('HSET', job, 'rqjobs_settled_token', token, 'rqjobs_token', '', 'status', 'finished',
  'started_at', started_iso, 'ended_at', ended_iso)
if ttl < 0 then
  redis.call('PERSIST', results)
else
  redis.call('EXPIRE', results, ttl)
  redis.call('EXPIRE', job, ttl)
  if had_dependencies then redis.call('EXPIRE', 'rq:job::' .. id .. ':dependencies', ttl) end
end
if has_log then expire_with(job, 'rqjobs:log:' .. id) end
drop_claim(claims, queue, id, token)
if end_policies then end_policies(id, return_value) end
-- The id of an entry of a stream begins with Redis's time.
count_event('finished', queue, 1, type(entry) == 'string' and string.sub(entry, 1, 10))
local dependents = job .. ':dependents'
if redis.call('EXISTS', dependents) == 0 then return 'settled' end
define_rare()
if enqueue_dependents(id, 'finished', ended_iso, default_timeout) then return 'dependents left' end
expire_with(job, dependents)
return 'settled'
