-- Record the plain success of a job, and let go of it: all of it, or nothing. `settle.lua` for the commonest outcome.
--
-- KEYS  1 rqjobs:claims:<me>
-- ARGV  1 job id   2 queue   3 token   4 me   5 started and 6 ended, as RQ writes it   7 and 8, as Unix times
--       9 seconds for which the result is kept, -1: for ever   10 until when that is, in RQ's registry
--       11 "1" if it had dependencies   12 RQ's default timeout, seconds   13 the result as RQ stores it, if there is one
-- Promise: as in settle.lua; and the jobs that waited for this one, and for nothing else, are in their queues, or, if they
-- are many, noted in rqjobs:ended-parents.
-- Returns as settle.lua.

local id, queue, token, me, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[9])
local job, results = 'rq:job:' .. id, 'rq:results:' .. id
if ttl >= 0 and not lifetime(ttl) then return redis.error_reply('ERR no such time to live: ' .. ARGV[9]) end
local reply, canceled = refusal(KEYS[1], queue, id, token)
if reply then return reply end
if canceled then
  redis.call('HSET', job, 'rqjobs_settled_token', token, 'rqjobs_token', '')
  drop(KEYS[1], queue, id, token)
  return 'canceled'
end

local registry = 'rq:finished:' .. queue
local added = redis.pcall('ZADD', registry, ARGV[10], id)
if type(added) == 'table' then return added end

-- Redis gives a new stream a page of 4 KiB at its first entry, and takes most of the time of this script for that; a copy
-- has only what it needs.
local result = {'type', 1, 'worker_name', me, 'execution_id', token, 'execution_started_at', ARGV[7],
  'execution_ended_at', ARGV[8]}
if ARGV[13] then result[11], result[12] = 'return_value', ARGV[13] end
redis.pcall('XADD', 'rqjobs:result', '*', unpack(result))
local copied = redis.pcall('COPY', 'rqjobs:result', results)
redis.call('DEL', 'rqjobs:result')
if copied ~= 1 then
  added = redis.pcall('XADD', results, 'MAXLEN', '~', 10, '*', unpack(result))
  if added.err then  -- a key of the wrong type; nothing is done
    redis.call('ZREM', registry, id)
    return added
  end
end

redis.call('HSET', job, 'rqjobs_settled_token', token, 'rqjobs_token', '', 'status', 'finished', 'started_at', ARGV[5],
  'ended_at', ARGV[6])
if ttl < 0 then
  redis.call('PERSIST', results)
else
  redis.call('EXPIRE', results, ttl)
  redis.call('EXPIRE', job, ttl)
  if ARGV[11] == '1' then redis.call('EXPIRE', 'rq:job::' .. id .. ':dependencies', ttl) end
end
drop(KEYS[1], queue, id, token)
local dependents = job .. ':dependents'
if redis.call('EXISTS', dependents) == 0 then return 'settled' end
if wake(id, 'finished', ARGV[6], ARGV[12]) then return 'dependents left' end
outlive_not(job, dependents)
return 'settled'
