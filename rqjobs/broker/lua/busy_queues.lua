-- Find the queues at which a sweep has to look.
--
-- KEYS  1 rq:queues
-- ARGV  1 where the last call ended, "0" at first   2 about so many queues   then names that are looked at besides
-- Promise: nothing is written; what has no name of ours costs nothing.
-- Returns where to go on ("0": that was all), then the names of those that have something in wip, in intermediate, among
-- the crashed, or remembered of intermediate.

local scan = redis.pcall('SSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local found = {scan.err and '0' or scan[1]}

local function look(name)
  if redis.call('EXISTS', 'rq:wip:' .. name, 'rq:queue:' .. name .. ':intermediate', 'rqjobs:crash-backoff:' .. name,
      'rqjobs:sweep:intermediate:' .. name) > 0 then
    found[#found + 1] = name
  end
end

for _, key in ipairs(scan[2] or {}) do look(string.gsub(key, '^rq:queue:', '')) end
for i = 3, #ARGV do look(ARGV[i]) end
return found
