-- Count the jobs in the places of queues.
--
-- ARGV  names of queues; if the first one is "", also all queues in Redis
-- Promise: nothing is written; a key of the wrong type counts as empty.
-- Returns, for each queue that has any job: its name; when its first waiting job was enqueued, as
-- RQ writes it; then the numbers of jobs in: queue, intermediate, scheduled, deferred, wip,
-- finished, failed, canceled, stopped. RQ keeps stopped jobs among the failed ones; here they count
-- as stopped.

local REGISTRIES = {'scheduled', 'deferred', 'wip', 'finished', 'failed', 'canceled'}
local FAILED = 7  -- the position of the failed jobs in the counts

local function count(command, key)
  local number = redis.pcall(command, key)
  return type(number) == 'number' and number or 0
end

local function places_of(name)
  local queue = 'rq:queue:' .. name
  local counts = {count('LLEN', queue), count('LLEN', queue .. ':intermediate')}
  for _, registry in ipairs(REGISTRIES) do
    counts[#counts + 1] = count('ZCARD', 'rq:' .. registry .. ':' .. name)
  end
  local total = 0
  for _, number in ipairs(counts) do total = total + number end
  if total == 0 then return nil end
  local stopped = counts[FAILED] > 0 and #stopped_jobs(name) or 0
  counts[FAILED] = counts[FAILED] - stopped
  counts[#counts + 1] = stopped
  local first = counts[1] > 0 and read_job(redis.call('LINDEX', queue, 0), 'enqueued_at')
  return {name, first and first[1] or '', unpack(counts)}
end

local reply = {}
for _, name in ipairs(queues_from(1)) do
  local places = places_of(name)
  if places then reply[#reply + 1] = places end
end
return reply
