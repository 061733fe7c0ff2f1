-- Let the first jobs of a flow run: all of its jobs are stored. Some of them at each call.
--
-- KEYS  1 rqjobs:held-flows   2 rqjobs:flow-held:<id>   3 rqjobs:outbox, if the flow is a row of the
--       outbox
-- ARGV  1 id of the flow   2 now, as RQ writes it   3 RQ's default timeout, seconds
--       4 maximum number of jobs to move   for a row then: 5 its id   6 when its mark is dropped
-- Promise: with the first call the flow is accepted, and will not be dropped. A job that was
-- canceled in the meantime is left alone. Repeated or concurrent calls do nothing twice. A row is
-- marked in the step that accepts its flow.
-- Returns the number of moved jobs and of those that are left, or {-1, 0} if the flow was dropped,
-- or will be, because nothing was stored to it in the last minute.

local held_flows, held = KEYS[1], KEYS[2]
local flow, iso, default_timeout, max_jobs = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local score = redis.pcall('ZSCORE', held_flows, flow)
if type(score) ~= 'string' or tonumber(score) <= redis_time() then return {-1, 0} end
if not fits(held, 'list') then
  return redis.error_reply('WRONGTYPE the key ' .. held .. ' is not a list; rename or delete it')
end
redis.call('ZADD', held_flows, '+inf', flow)
if KEYS[3] then redis.call('ZADD', KEYS[3], ARGV[6], ARGV[5]) end
local ids, kept = redis.call('LRANGE', held, 0, max_jobs - 1), {}
for _, id in ipairs(ids) do
  local is_moved = enqueue_dependent(id, flow, 'finished', iso, default_timeout)
  local fields = not is_moved and read_job(id, 'origin', 'status')
  if fields and fields[2] == 'deferred' and is_in_place(id, fields[1], 'deferred') then
    kept[#kept + 1] = id  -- its queue's key has the wrong type; the sweep tries it again
  end
end
redis.call('LTRIM', held, #ids, -1)
for _, id in ipairs(kept) do redis.call('RPUSH', held, id) end
local left = redis.call('LLEN', held)
if left == 0 then redis.call('ZREM', held_flows, flow) end
return {#ids - #kept, left}
