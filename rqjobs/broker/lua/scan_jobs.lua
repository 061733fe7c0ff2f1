-- Look through the jobs for strays, or for the audit.
--
-- ARGV  1 where the last call ended, "0" at first   2 about so many keys   3 "active", or "all"
-- Promise: nothing is written; what is no job's hash, or has no data, is passed over.
-- Returns where to go on ("0": that was all), and for "active" {id, queue, timeout, last heartbeat, started, enqueued,
-- created} of each job that has a queue and waits or runs; for "all" the ids of all that have not ended, then the others'.

local all, rows, others = ARGV[3] == 'all', {}, {}
local scan = redis.pcall('SCAN', ARGV[1], 'MATCH', 'rq:job:*', 'COUNT', ARGV[2])
if scan.err then return {'0', {}, {}} end  -- somebody else wrote the cursor
for _, key in ipairs(scan[2]) do
  local id = string.sub(key, 8)
  local fields = not string.find(id, ':', 1, true) and read(id, 'status')  -- not …:dependents, not :…:dependencies
  if fields and redis.call('HSTRLEN', key, 'data') > 0 then
    if all then
      local list = (waits(fields[1]) or fields[1] == 'deferred') and rows or others
      list[#list + 1] = id
    elseif waits(fields[1]) then
      fields = read(id, 'origin', 'timeout', 'last_heartbeat', 'started_at', 'enqueued_at', 'created_at')
      if fields[1] then rows[#rows + 1] = {id, unpack(fields)} end
    end
  end
end
return {scan[1], rows, others}
