-- Scan the jobs, for the audit.
--
-- ARGV  1 cursor of the last call, "0" at first   2 about how many keys to look at
-- Promise: nothing is written. A key that is not a job's hash is skipped.
-- Returns the next cursor ("0": no more), the keys of jobs that have not ended, and of other jobs.

local UNENDED = {queued = true, started = true, scheduled = true, deferred = true}
local unended, others = {}, {}
local scan = redis.call('SCAN', ARGV[1], 'MATCH', 'rq:job:*', 'COUNT', ARGV[2])
for _, key in ipairs(scan[2]) do
  if not string.find(key, ':', 8, true) then  -- not rq:job:<id>:dependents and the like
    local status = redis.pcall('HGET', key, 'status')
    if type(status) ~= 'table' then  -- not an error
      local list = UNENDED[status] and unended or others
      list[#list + 1] = key
    end
  end
end
return {scan[1], unended, others}
