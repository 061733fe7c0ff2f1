-- Cancel jobs that wait in one queue.
--
-- KEYS  1 queue   2 canceled
-- ARGV  1 the depth of the first of them from the queue's right end, as far as is known
--       2 maximum number of jobs to look at   then the ids
-- Promise: each of these jobs that waits near that depth is canceled, and leaves the queue in the
-- same step. A job that waits elsewhere, or not at all, is left alone. The queue is walked through
-- once, whatever the number of jobs is.
-- Returns the ids of the canceled jobs.

local CANCELED = ':canceled'  -- stands in the queue for a moment; no id has a colon
local CHUNK = 1000
local queue_key, canceled_key = KEYS[1], KEYS[2]
local depth, max_looked = tonumber(ARGV[1]), tonumber(ARGV[2])
local wanted, missing, done = {}, #ARGV - 2, {}
for i = 3, #ARGV do wanted[ARGV[i]] = true end
if not fits(queue_key, 'list') or redis.call('EXISTS', queue_key) == 0 then return {} end
if not fits(canceled_key, 'zset') then
  local what = ' is not a sorted set; rename or delete it'
  return redis.error_reply('ERR the key ' .. canceled_key .. what)
end

local function cancel(id, index)
  local before = placement(id)
  if not before or before.status ~= 'queued' then return end
  redis.call('HSET', 'rq:job:' .. id, 'status', 'canceled')
  redis.call('ZADD', canceled_key, string.format('%d', redis_time()), id)
  redis.call('LSET', queue_key, index, CANCELED)
  if before.unique_key then forget_unique(id, before.unique_key) end
  note_unfinished(id)
  done[#done + 1] = id
end

local looked = 0
while missing > 0 and looked < max_looked do
  local ids = redis.call('LRANGE', queue_key, -depth - CHUNK, -depth - 1)
  if #ids == 0 then break end
  for i = #ids, 1, -1 do
    if wanted[ids[i]] then
      wanted[ids[i]] = nil
      missing = missing - 1
      cancel(ids[i], -depth - 1 - (#ids - i))
    end
  end
  depth, looked = depth + #ids, looked + #ids
end
if #done > 0 then redis.call('LREM', queue_key, -#done, CANCELED) end
return done
