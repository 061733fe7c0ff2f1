-- Find the queues that a sweep has to look at.
--
-- KEYS  1 rq:queues
-- ARGV  1 cursor of the last call, "0" at first   2 about how many queues to look at
--       then names of further queues to look at
-- Promise: nothing is written.
-- Returns the next cursor ("0": no more), then the names of queues that have jobs in wip, in the
-- intermediate list, or delayed after a crash, or notes of a sweep about intermediate jobs.

local cursor, count = ARGV[1], ARGV[2]
local scan = redis.pcall('SSCAN', KEYS[1], cursor, 'COUNT', count)
local reply = {scan.err and '0' or scan[1]}

local function look_at(name)
  local number = redis.call('EXISTS', 'rq:wip:' .. name, 'rq:queue:' .. name .. ':intermediate',
    'rqjobs:crash-backoff:' .. name, 'rqjobs:sweep:intermediate:' .. name)
  if number > 0 then reply[#reply + 1] = name end
end

for _, key in ipairs(scan[2] or {}) do look_at(string.gsub(key, '^rq:queue:', '')) end
for i = 3, #ARGV do look_at(ARGV[i]) end
return reply
