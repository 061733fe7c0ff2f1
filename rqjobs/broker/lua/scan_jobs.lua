-- Scan the jobs, for strays.
--
-- ARGV  1 cursor of the last call, "0" at first   2 about how many keys to look at
--       then ids of further jobs to look at
-- Promise: nothing is written. A key that is not a job's hash with data is skipped.
-- Returns the next cursor ("0": no more), then two lists: {id, queue, timeout, last heartbeat, start,
-- enqueueing, creation} of each job that has a queue and waits or runs, except those that wait for
-- other jobs; and the ids of the logs that have no job.

local cursor, count = ARGV[1], ARGV[2]
local active, logs = {}, {}

local function look_at_log(key)
  local id = string.sub(key, 12)
  if redis.call('EXISTS', 'rq:job:' .. id) == 0 then logs[#logs + 1] = id end
end

local function look_at(key)
  if string.sub(key, 1, 11) == 'rqjobs:log:' then return look_at_log(key) end
  if string.sub(key, 1, 7) ~= 'rq:job:' then return end
  local id = string.sub(key, 8)
  if string.find(id, ':', 1, true) then return end  -- rq:job:<id>:dependents and the like
  local fields = read_job(id, 'status')
  if not fields or redis.call('HSTRLEN', key, 'data') == 0 then return end
  local status = fields[1]
  if is_active(status) or is_parked(id, status) then
    fields = read_job(id, 'origin', 'timeout', 'last_heartbeat', 'started_at', 'enqueued_at',
      'created_at')
    if fields[1] then active[#active + 1] = {id, unpack(fields)} end
  end
end

local scan = redis.pcall('SCAN', cursor, 'MATCH', 'rq*:[jl]o[bg]:*', 'COUNT', count)
if scan.err then return {'0', {}, {}} end  -- the stored cursor is foreign data
for i = 3, #ARGV do look_at('rq:job:' .. ARGV[i]) end
for _, key in ipairs(scan[2]) do look_at(key) end
return {scan[1], active, logs}
