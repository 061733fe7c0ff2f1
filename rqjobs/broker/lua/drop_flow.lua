-- Delete the jobs of a flow that was not stored completely. Some of them at each call.
--
-- KEYS  1 rqjobs:held-flows   2 rqjobs:flow:<id>   3 rqjobs:flow-jobs:<id>   4 rqjobs:flow-held:<id>
-- ARGV  1 id of the flow   2 "1" if its process may still be storing it   3 maximum number of jobs
-- Promise: a flow that was released is left alone, and with ARGV 2 also one that was stored to in
-- the last minute. After the first call the flow can be neither stored to nor released. A full Redis
-- accepts the call for an abandoned flow, because it frees memory.
-- Returns the number of jobs that are left to be deleted.

local held_flows, ids_key = KEYS[1], KEYS[3]
local flow, may_be_storing, max_jobs = ARGV[1], ARGV[2] == '1', tonumber(ARGV[3])
local score = redis.pcall('ZSCORE', held_flows, flow)
if type(score) ~= 'string' or score == 'inf' then return 0 end
local is_abandoned = tonumber(score) <= redis_time()
if may_be_storing and not is_abandoned then return 0 end
-- A full Redis refuses this write. An abandoned flow can neither be stored to nor released anyway.
local marked = redis.pcall('ZADD', held_flows, '-inf', flow)
if type(marked) == 'table' and not is_abandoned then return marked end
local ids = redis.pcall('LRANGE', ids_key, -max_jobs, -1)
for _, id in ipairs(ids) do
  local fields = read_job(id, 'origin', 'rqjobs_flow')
  if fields and fields[2] and string.match(fields[2], '^%S+') == flow then
    local job = 'rq:job:' .. id
    redis.call('DEL', job, job .. ':dependents', 'rq:job::' .. id .. ':dependencies')
    redis.pcall('ZREM', 'rq:deferred:' .. (fields[1] or ''), id)
  end
end
if #ids > 0 then redis.call('LTRIM', ids_key, 0, -#ids - 1) end
local left = redis.pcall('LLEN', ids_key)
if type(left) == 'number' and left > 0 then return left end
redis.call('DEL', KEYS[2], ids_key, KEYS[4])
redis.call('ZREM', held_flows, flow)
redis.pcall('ZREM', 'rqjobs:flows', flow)
return 0
