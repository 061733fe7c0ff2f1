-- Move the jobs of one queue that are due from the scheduled set into the queue.
--
-- KEYS  1 scheduled   2 queue   3 rq:queues   4 rqjobs:crashed:<queue>   5 failed
-- ARGV  1 at most so many   2 now, as RQ writes it   3 default timeout, seconds
--       4 seconds after which a due id without a job is dropped (its enqueuer may still be writing)
--       5 "1": only jobs that wait because a process died under them; KEYS 4 tells which, because a thousand that wait
--       for a scheduler may be due before them
-- Promise: a due job is in the scheduled set or in the queue, never in both, whoever else promotes beside us; by
-- Redis's clock none comes early; the order is that of the due times; what crashed a horse comes to the front, where it
-- was. What is no job goes to the dead letters, and holds up nothing.
-- Returns how many were moved.

local now, crashed, moved, front = clock(), ARGV[5] == '1', 0, {}

local function enqueue(push, id, since)
  local job = 'rq:job:' .. id
  local fields = read(id, 'timeout', 'ttl')
  redis.call('HSET', job, 'status', 'queued', 'enqueued_at', since or ARGV[2], 'timeout', fields[1] or ARGV[3])
  if lifetime(fields[2]) then redis.call('EXPIRE', job, lifetime(fields[2])) end
  redis.call(push, KEYS[2], id)
  redis.call('ZREM', KEYS[1], id)
  moved = moved + 1
end

local due = redis.call('ZRANGEBYSCORE', KEYS[crashed and 4 or 1], '-inf', string.format('%.6f', now), 'WITHSCORES',
  'LIMIT', 0, ARGV[1])
for i = 1, #due, 2 do
  local id = due[i]
  local fields = read(id, 'data', 'status', 'enqueue_at_front', 'enqueue_at_front_on_retry', 'ended_at',
    'enqueued_at')
  local back = redis.call('ZSCORE', KEYS[4], id)  -- it was in the queue already, and keeps its place
  local score = tonumber(redis.call('ZSCORE', KEYS[1], id) or '')
  if not score or score > now then
    -- it crashed a horse once, and is not there any more, or for another time
  elseif not fields then
    redis.call('ZADD', KEYS[5], '+inf', id)
    redis.call('ZREM', KEYS[1], id)
  elseif not fields[1] then
    if score < now - tonumber(ARGV[4]) then redis.call('ZREM', KEYS[1], id) end
  elseif not waits(fields[2]) and fields[2] ~= 'created' then
    redis.call('ZREM', KEYS[1], id)
  elseif back or fields[3] == '1' or (fields[4] == '1' and fields[5]) then
    table.insert(front, 1, {id, back and fields[6]})
  else
    enqueue('RPUSH', id)
  end
  redis.call('ZREM', KEYS[4], id)
end
for _, one in ipairs(front) do enqueue('LPUSH', one[1], one[2]) end
if moved > 0 then redis.call('SADD', KEYS[3], KEYS[2]) end
return moved
