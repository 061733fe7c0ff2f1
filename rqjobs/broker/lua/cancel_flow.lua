-- Cancel some jobs of a flow.
--
-- KEYS  none
-- ARGV  1 id of the flow   then the ids of the jobs
-- Promise: a job of the flow that has not ended is canceled, as by RQ: it leaves its place, and if it
-- runs, its outcome will be dropped. No job behind it is enqueued. Others are left alone.
-- Returns the number of canceled jobs.

local flow, canceled = ARGV[1], 0
local NEAR_THE_END = 1000  -- jobs of a queue that are searched from its back first

local function remove_from_queue(queue_key, id)
  local near = redis.pcall('LPOS', queue_key, id, 'RANK', -1, 'MAXLEN', NEAR_THE_END)
  redis.pcall('LREM', queue_key, type(near) == 'number' and -1 or 1, id)
end

for i = 2, #ARGV do
  local id = ARGV[i]
  local fields = read_job(id, 'status', 'origin', 'rqjobs_flow')
  local is_ours = fields and fields[3] and string.match(fields[3], '^%S+') == flow
  if is_ours and (is_active(fields[1]) or fields[1] == 'deferred') then
    local status, queue = fields[1], fields[2] or ''
    redis.call('HSET', 'rq:job:' .. id, 'status', 'canceled')
    if status == 'queued' then remove_from_queue('rq:queue:' .. queue, id) end
    if status == 'scheduled' or status == 'deferred' then
      redis.pcall('ZREM', 'rq:' .. status .. ':' .. queue, id)
      redis.pcall('ZREM', 'rqjobs:crash-backoff:' .. queue, id)
    end
    redis.pcall('ZADD', 'rq:canceled:' .. queue, string.format('%d', redis_time()), id)
    canceled = canceled + 1
  end
end
return canceled
