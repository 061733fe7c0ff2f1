-- Scan the failed jobs of a queue for those without a group: failures that plain RQ has recorded.
--
-- ARGV  1 queue   2 cursor of the last call, "0" at first   3 about how many jobs to look at
-- Promise: nothing is written. A stopped job is not a failed one.
-- Returns the next cursor ("0": no more), then ids.

local queue, cursor, count = ARGV[1], ARGV[2], ARGV[3]
local scan = redis.pcall('ZSCAN', 'rq:failed:' .. queue, cursor, 'COUNT', count)
if scan.err then return {'0'} end
local reply = {scan[1]}

local function has_group(id, group)
  local score = group and redis.pcall('ZSCORE', 'rqjobs:failure-group-jobs:' .. group, id)
  return type(score) == 'string'
end

for i = 1, #scan[2], 2 do
  local id = scan[2][i]
  local fields = read_job(id, 'status', 'rqjobs_failure_group') or {}
  if fields[1] ~= 'stopped' and not has_group(id, fields[2]) then reply[#reply + 1] = id end
end
return reply
