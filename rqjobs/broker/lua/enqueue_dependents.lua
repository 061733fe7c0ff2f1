-- Enqueue jobs that depend on a job which has ended: some of them at each call.
--
-- KEYS  1 rqjobs:ended-parents
-- ARGV  1 the ended job's member of that set: its id if we failed it, else its id and outcome,
--       "<id>:finished" or "<id>:failed", because a job that repeats is queued again by now
--       2 now, as RQ writes it   3 default timeout, seconds   4 cursor, "0" at first
--       5 about how many dependents to look at
-- Promise: a job moves from the deferred set into its queue if it is still deferred and all jobs
-- that it depends on have ended so that it may run. The member is removed after the last dependent.
-- Repeated or concurrent calls do nothing twice.
-- Returns the next cursor ("0": no more), and the ids that were enqueued.

local ended_parents, member, iso, default_timeout = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local cursor, count = ARGV[4], ARGV[5]
local id, outcome = string.match(member, '^([^:]*):?(.*)$')
local job, dependents = 'rq:job:' .. id, 'rq:job:' .. id .. ':dependents'
local has_dependents = redis.call('TYPE', dependents).ok == 'set'
  and (outcome ~= '' or has_ended(id, true))
local scan = {'0', {}}
if has_dependents then scan = redis.call('SSCAN', dependents, cursor, 'COUNT', count) end
local reply = {scan[1]}
for _, child in ipairs(scan[2]) do
  if enqueue_dependent(child, id, outcome, iso, default_timeout) then reply[#reply + 1] = child end
end
if scan[1] == '0' then
  redis.pcall('SREM', ended_parents, member)
  if has_dependents then expire_with(job, dependents) end
end
return reply
