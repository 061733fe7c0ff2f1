-- Find jobs of schedules whose outcome is to be noted.
--
-- KEYS  1 rqjobs:schedules:unfinished
-- ARGV  1 where the last call ended, "0" at first   2 about so many jobs
-- Promise: nothing is written.
-- Returns where to go on ("0": that was all), then {job id, schedule, status, when it ended} of each that has ended or is
-- gone; the status of one that is gone is "".

local scan = redis.pcall('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
if scan.err then return {'0'} end  -- somebody else wrote there; run_schedule.lua passes over it, too
local found, open = {scan[1]}, scan[2]
for i = 1, #open, 2 do
  local fields = read(open[i], 'status', 'ended_at') or {}
  if not (waits(fields[1]) or fields[1] == 'deferred' or fields[1] == 'created') then
    found[#found + 1] = {open[i], open[i + 1], fields[1] or '', fields[2] or ''}
  end
end
return found
