-- Put a job that ended between two rows of a loop, because its worker stops, back at the front of
-- its queue.
-- All ways back into a queue are listed in transitions.py.
--
-- KEYS  1 rqjobs:claims:<worker>
-- ARGV  1 job id   2 queue   3 token   then fields of its hash and their values: its cursors, its
--       progress and its meta
-- Promise: as `settle.lua`. The fields and the place are written in one step. The job keeps its
-- retries, its crashes and its unique key. It is the next one of its limit. It has begun, so it
-- does not expire.
-- Returns as `settle.lua`.

local claims, id, queue, token = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local FIRST_FIELD = 4
local job, queue_key = 'rq:job:' .. id, 'rq:queue:' .. queue
local reply, is_canceled, unique_key = refusal(claims, queue, id, token)
if reply then return reply end
if is_canceled then
  mark_settled(claims, queue, id, token)
  if unique_key then forget_unique(id, unique_key) end
  count_event('canceled', queue, 1)
  return 'canceled'
end
if not fits(queue_key, 'list') then
  return redis.error_reply('ERR the key ' .. queue_key .. ' is not a list; rename or delete it')
end
redis.call('HSET', job, 'rqjobs_settled_token', token, unpack(ARGV, FIRST_FIELD))
redis.call('HDEL', job, 'rqjobs_expires')
put_back(queue, id)
drop_claim(claims, queue, id, token)
return 'settled'
