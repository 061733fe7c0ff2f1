-- Bring one job back from the dead letters into its queue.
--
-- KEYS  1 job hash   2 queue   3 rq:queues   4 failed
-- ARGV  1 job id   2 "front" or "back"   3 now, as RQ writes it
-- Promise: the job leaves the dead letters and enters its queue in one step, with its deaths forgotten.
-- Returns "requeued", "not failed" (it is not there, or was enqueued again since and is not there any more), or "gone"
-- (its hash had expired; the entry is removed).

if not redis.call('ZSCORE', KEYS[4], ARGV[1]) then return 'not failed' end
local fields, before = read(ARGV[1], 'data', 'ttl'), standing(ARGV[1])
if not fields or not fields[1] then
  redis.call('ZREM', KEYS[4], ARGV[1])
  return 'gone'
end
local waiting = stands(ARGV[1], before.queue, before.status)
local running = is_held_by_another(ARGV[1], nil, before.token, before.worker)
local finished = before.status == 'finished' and redis.call('ZSCORE', 'rq:finished:' .. before.queue, ARGV[1])
if waiting or running or finished then
  redis.call('ZREM', KEYS[4], ARGV[1])
  return 'not failed'
end
if not fits(KEYS[2], 'list') then return redis.error_reply('ERR the key ' .. KEYS[2] .. ' is no list') end
redis.call('HSET', KEYS[1], 'status', 'queued', 'enqueued_at', ARGV[3], 'started_at', '', 'ended_at', '',
  'worker_name', '')
redis.call('PERSIST', KEYS[1])
if lifetime(fields[2]) then redis.call('EXPIRE', KEYS[1], lifetime(fields[2])) end
retire(ARGV[1], before)
redis.call(ARGV[2] == 'front' and 'LPUSH' or 'RPUSH', KEYS[2], ARGV[1])
redis.pcall('SADD', KEYS[3], KEYS[2])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.pcall('ZREM', 'rqjobs:stopped:' .. string.sub(KEYS[4], 11), ARGV[1])
redis.call('HDEL', KEYS[1], 'rqjobs_crashes', 'exc_info')
return 'requeued'
