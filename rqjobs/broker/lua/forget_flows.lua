-- Remove some flows that are gone from the list of all flows.
--
-- KEYS  1 rqjobs:flows
-- ARGV  1 maximum number of flows that are looked at
-- Promise: a flow that is in Redis stays in the list. Flows are looked at in a random order, so each
-- one has its turn.
-- Returns the number of flows that were looked at, and of those that were removed.

local flows, max_flows = KEYS[1], tonumber(ARGV[1])
local found = redis.pcall('ZRANDMEMBER', flows, max_flows)
if found.err then return {0, 0} end
local removed = 0
for _, flow in ipairs(found) do
  if redis.call('EXISTS', 'rqjobs:flow:' .. flow) == 0 then
    redis.call('ZREM', flows, flow)
    removed = removed + 1
  end
end
return {#found, removed}
