-- Do what a failure leaves to do: count it in its group, and enqueue the job of its on_failed.
--
-- KEYS  1 rqjobs:new-failures   2 rq:queues
-- ARGV  1 its field in the first key   2 id of the failed job
--       3 the group (`count_failure`), "" if the failure was counted when it was recorded
--       4 the queue of the job of on_failed, "" for none   5 that job's id, never used before
--       6 its ttl, seconds, or ""   then fields and values of its hash
-- Promise: a failure is counted once and on_failed is called once, however many callers there are.
-- Returns "done"; or "done before".

local new_failures, field, id, group = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local queue, call_id, ttl = ARGV[4], ARGV[5], ARGV[6]
local FIRST_FIELD = 7
if redis.call('HEXISTS', new_failures, field) == 0 then return 'done before' end
if queue ~= '' then
  local queue_key, call = 'rq:queue:' .. queue, 'rq:job:' .. call_id
  if not fits(queue_key, 'list') then
    local reason = 'ERR the key ' .. queue_key .. ' has the wrong type; rename or delete it'
    return redis.error_reply(reason)
  end
  redis.call('HSET', call, unpack(ARGV, FIRST_FIELD))
  if ttl_seconds(ttl) then redis.call('EXPIRE', call, ttl_seconds(ttl)) end
  local expires = read_job(call_id, 'rqjobs_expires')[1]
  if expires then start_expiry(call_id, expires, redis_time()) end
  redis.call('RPUSH', queue_key, call_id)
  redis.pcall('SADD', KEYS[2], queue_key)
  count_event('enqueued', queue, 1)
end
if group ~= '' then count_failure(id, group) end
redis.call('HDEL', new_failures, field)
return 'done'
