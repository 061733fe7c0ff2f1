-- Delete one job from every place of its queue, unless a worker has it.
--
-- KEYS  1 job hash   2-4 what else belongs to it   5 queue   6 intermediate   7 wip   then the other registries
-- ARGV  1 job id   2 queue's name
-- Promise: a running job is left alone, because its worker would write the remains of it back.
-- Returns "deleted", "running", or "gone" (nothing of it was left, or its hash is another queue's).

for _, member in ipairs(redis.call('ZRANGE', KEYS[7], 0, -1)) do
  if string.sub(member .. ':', 1, #ARGV[1] + 1) == ARGV[1] .. ':' then return 'running' end
end
if redis.call('LPOS', KEYS[6], ARGV[1]) then return 'running' end
local origin = redis.pcall('HGET', KEYS[1], 'origin')
redis.call('LREM', KEYS[5], 1, ARGV[1])
for i = 8, #KEYS do redis.call('ZREM', KEYS[i], ARGV[1]) end
if type(origin) == 'string' and origin ~= ARGV[2] then return 'gone' end
local there = redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4]) > 0
return there and 'deleted' or 'gone'
