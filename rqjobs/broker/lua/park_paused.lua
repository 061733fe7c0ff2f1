-- Let a claimed job that has not begun wait until its function is resumed.
--
-- KEYS  1 rqjobs:claims:<worker>   2 rqjobs:paused   3 rqjobs:paused-jobs:<function>
--       4 rqjobs:paused-jobs
-- ARGV  1 job id   2 queue   3 token   4 function
-- Promise: the job leaves the claims for RQ's deferred jobs and the end of the function's list, in
-- one step, if it still carries the token and the function is still paused. No crash is counted.
-- Returns "parked"; "not paused", with nothing done; or why the claim is not ours any more, as
-- settle.lua does.

local claims, paused, waiting, functions = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, queue, token, name = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local deferred = 'rq:deferred:' .. queue
if redis.pcall('HEXISTS', paused, 'function:' .. name) ~= 1 then return 'not paused' end
local reply, is_canceled = refusal(claims, queue, id, token)
if reply then return reply end
if is_canceled then
  mark_settled(claims, queue, id, token)
  return 'canceled'
end
make_fit(deferred, 'zset')
make_fit(waiting, 'list')
make_fit(functions, 'set')
unclaim(id, 'deferred')
redis.call('HSET', 'rq:job:' .. id, 'rqjobs_paused', name)
local ttl = ttl_seconds(read_job(id, 'ttl')[1])
if ttl then redis.call('EXPIRE', 'rq:job:' .. id, ttl) end  -- the claim had removed the expiry
redis.call('ZADD', deferred, string.format('%d', redis_time()), id)
redis.call('RPUSH', waiting, id)
redis.call('SADD', functions, name)
drop_claim(claims, queue, id, token)
return 'parked'
