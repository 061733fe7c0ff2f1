-- Move one failed job back into its queue.
-- All ways back into a queue are listed in transitions.py.
--
-- KEYS  1 job hash   2 queue   3 rq:queues   4 failed
-- ARGV  1 job id   2 "front" or "back"   3 now, as RQ writes it
--       4 "1" to leave a stopped job alone
-- Promise: the job leaves the failed jobs and enters its queue in one step. Its crashes are
-- cleared, it does not expire any more, and it has all retries of its rules again. A unique job
-- takes its key again.
-- Returns "requeued"; "stopped" (left alone); "unique <id>" (that job has its unique key, and
-- nothing is done); "not failed" (the job is not listed, or was enqueued again since and has left
-- the failed jobs now); or "gone" (its hash had expired; the entry is removed).

local job, queue_key, queues_key, failed = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, place, iso, leaves_stopped = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'
if not redis.call('ZSCORE', failed, id) then return 'not failed' end
local fields = read_job(id, 'data', 'ttl', 'rqjobs_retries', 'retries_left', 'rqjobs_limit')
local before = placement(id)
if not fields or not fields[1] then
  redis.call('ZREM', failed, id)
  return 'gone'
end
if leaves_stopped and before.status == 'stopped' then return 'stopped' end
local is_waiting = is_in_place(id, before.queue, before.status)
local is_running = is_held_by_another(id, nil, before.token, before.worker)
local has_finished = before.status == 'finished'
  and redis.call('ZSCORE', 'rq:finished:' .. before.queue, id)
if is_waiting or is_running or has_finished then
  redis.call('ZREM', failed, id)
  return 'not failed'
end
local unique_key = fits('rqjobs:unique', 'hash') and before.unique_key
local holder = unique_key and unique_holder(unique_key)
if holder and holder.id ~= id then return 'unique ' .. holder.id end
if not fits(queue_key, 'list') then
  return redis.error_reply('ERR the key ' .. queue_key .. ' is not a list; rename or delete it')
end
redis.call('HSET', job, 'status', 'queued', 'enqueued_at', iso, 'started_at', '', 'ended_at', '',
  'worker_name', '')
redis.call('PERSIST', job)
if ttl_seconds(fields[2]) then redis.call('EXPIRE', job, ttl_seconds(fields[2])) end
retire(id, before)
redis.call(place == 'front' and 'LPUSH' or 'RPUSH', queue_key, id)
redis.pcall('SADD', queues_key, queue_key)
redis.call('ZREM', failed, id)
redis.pcall('ZREM', 'rqjobs:stopped:' .. string.sub(failed, 11), id)
redis.call('HDEL', job, 'rqjobs_crashes', 'rqjobs_expires', 'rqjobs_retries', 'exc_info')
if place == 'front' and fields[5] then redis.call('HSET', job, 'rqjobs_woken', '1') end
local retried = tonumber(string.match(fields[3] or '', '^%d+') or '')
local left = tonumber(fields[4] or '')
if retried and left then
  redis.call('HSET', job, 'retries_left', string.format('%d', left + retried))
end
if unique_key then redis.call('HSET', 'rqjobs:unique', unique_key, id) end
count_event('enqueued', string.sub(queue_key, 10), 1)
return 'requeued'
