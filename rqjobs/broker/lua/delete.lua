-- Delete one job from every place of its queue, unless a worker runs it.
--
-- KEYS  1 job hash   2-4 further keys of the job   5 queue   6 intermediate   7 wip
--       then the other registries
-- ARGV  1 job id   2 queue's name
-- Promise: a running job is left alone, because its worker would write parts of it back.
-- Returns "deleted", "running", or "gone" (the job did not exist, or its hash names another queue).

local job, queue_key, intermediate, wip = KEYS[1], KEYS[5], KEYS[6], KEYS[7]
local id, queue = ARGV[1], ARGV[2]
for _, member in ipairs(redis.call('ZRANGE', wip, 0, -1)) do
  if string.sub(member .. ':', 1, #id + 1) == id .. ':' then return 'running' end
end
if redis.call('LPOS', intermediate, id) then return 'running' end
local fields = redis.pcall('HMGET', job, 'origin', 'rqjobs_unique', 'rqjobs_failure_group')
local origin, unique_key, group = fields[1], fields[2], fields[3]
redis.call('LREM', queue_key, 1, id)
for i = 8, #KEYS do redis.call('ZREM', KEYS[i], id) end
if type(origin) == 'string' and origin ~= queue then return 'gone' end
if group then redis.pcall('ZREM', 'rqjobs:failure-group-jobs:' .. group, id) end
if unique_key then forget_unique(id, unique_key, true) end
redis.call('DEL', 'rqjobs:log:' .. id)
local number = redis.call('DEL', job, KEYS[2], KEYS[3], KEYS[4])
return number > 0 and 'deleted' or 'gone'
