-- Find jobs of schedules whose outcome can be noted.
--
-- KEYS  1 rqjobs:schedules:unfinished
-- ARGV  1 cursor of the last call, "0" at first   2 about how many jobs to look at
-- Promise: nothing is written.
-- Returns the next cursor ("0": no more), then {job id, schedule, status, time of its end} of each
-- job that has ended or is gone; the status of a job that is gone is "".

local cursor, count = ARGV[1], ARGV[2]
local scan = redis.pcall('HSCAN', KEYS[1], cursor, 'COUNT', count)
if scan.err then return {'0'} end  -- the key has the wrong type; run_schedule.lua skips it, too
local reply, unfinished = {scan[1]}, scan[2]
for i = 1, #unfinished, 2 do
  local id, schedule = unfinished[i], unfinished[i + 1]
  local fields = read_job(id, 'status', 'ended_at') or {}
  if not (is_active(fields[1]) or fields[1] == 'deferred' or fields[1] == 'created') then
    reply[#reply + 1] = {id, schedule, fields[1] or '', fields[2] or ''}
  end
end
return reply
