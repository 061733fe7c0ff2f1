-- Let the jobs run that waited for one which has ended: some of them at each call.
--
-- KEYS  1 rqjobs:ended-parents
-- ARGV  1 the job's member there: its id, if it failed for a reason of our own, else "<id>:finished" or "<id>:failed", what
--       it counts as (a job that repeats has ended for them, and is queued again)   2 now, as RQ writes it
--       3 default timeout, seconds   4 where to go on, "0" to begin   5 about how many to look at
-- Promise: a job goes from the deferred set into its queue if it is deferred still, and all that it waits for has ended
-- so that it may run; when all have been looked at the member is removed. Asked twice, or by several, nothing is done twice.
-- Returns where to go on, "0" at the end, and the ids that were enqueued.

local id, as = string.match(ARGV[1], '^([^:]*):?(.*)$')
local job, dependents = 'rq:job:' .. id, 'rq:job:' .. id .. ':dependents'
local there = redis.call('TYPE', dependents).ok == 'set' and (as ~= '' or has_ended(id, true))
local found = there and redis.call('SSCAN', dependents, ARGV[4], 'COUNT', ARGV[5]) or {'0', {}}
local woken = {found[1]}
for _, child in ipairs(found[2]) do
  if wake_one(child, id, as, ARGV[2], ARGV[3]) then woken[#woken + 1] = child end
end
if found[1] == '0' then
  redis.pcall('SREM', KEYS[1], ARGV[1])
  if there then outlive_not(job, dependents) end
end
return woken
