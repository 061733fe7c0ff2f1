-- Find the newest jobs of one registry over many queues.
--
-- ARGV  1 "queue", or a registry as RQ's keys name it   2 maximum number of jobs
--       3 number of fields to read   then these fields of a job's hash   then names of queues; if
--       the first one is "", also all queues in Redis
-- Promise: nothing is written; a key of the wrong type counts as empty.
-- Returns {{moment, id, {value, …}}, …}, the newest first. The moment is the job's end, else its
-- enqueueing, else its creation. The values are those of the fields, "" for one that is not there.

local registry, max_jobs, found = ARGV[1], tonumber(ARGV[2]), {}
local last_field = 3 + tonumber(ARGV[3])

local function newest_members(queue)
  local key = 'rq:' .. registry .. ':' .. queue
  if registry == 'queue' then return redis.pcall('LRANGE', key, -max_jobs, -1) end
  local number = max_jobs
  if registry == 'failed' then number = number + #stopped_jobs(queue) end
  return redis.pcall('ZREVRANGE', key, 0, number - 1)
end

for _, queue in ipairs(queues_from(last_field + 1)) do
  for _, member in ipairs(newest_members(queue)) do
    local id = string.match(member, '^[^:]*')
    local fields = read_job(id, 'ended_at', 'enqueued_at', 'created_at', 'status')
    if fields and not (registry == 'failed' and fields[4] == 'stopped') then
      found[#found + 1] = {fields[1] or fields[2] or fields[3] or '', id}
    end
  end
end
table.sort(found, function(one, other) return one[1] > other[1] end)
for i = #found, max_jobs + 1, -1 do found[i] = nil end
for _, job in ipairs(found) do
  job[3] = read_job(job[2], unpack(ARGV, 4, last_field))
  for i, value in ipairs(job[3]) do job[3][i] = value or '' end
end
return found
