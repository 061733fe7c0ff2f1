-- Read some flows, the newest first.
--
-- KEYS  1 rqjobs:flows
-- ARGV  1 the largest time of enqueueing   2 maximum number of flows   3 number of jobs whose states
--       are counted, of all flows together
-- Promise: nothing is written. A key of the wrong type counts as empty.
-- Returns {{flow, time, shape, number of jobs, results, description of the first job, that of the
-- last job, states}, …}. `shape` is "" for a flow that is gone. `results` is the number of finished
-- jobs. `states` has the number of jobs by status, as a flat list; it is empty if they were not
-- counted. A failed or stopped job whose flow goes on counts as "continue", and a canceled one as
-- "passed over"; "open ends" is there if one of the last jobs has not finished.

local max_flows, left = tonumber(ARGV[2]), tonumber(ARGV[3])

local function description_of(id)
  return id and string.sub((read_job(id, 'description') or {})[1] or '', 1, 400) or ''
end

local function status_of(id, flow_key)
  local fields = redis.pcall('HMGET', 'rq:job:' .. id, 'status', 'rqjobs_flow')
  local status, place = fields[1] or '', fields[2] or ''
  if status == '' then return redis.pcall('HEXISTS', flow_key, id) == 1 and 'finished' or 'gone' end
  if not string.match(place, ' continue$') then return status end
  if status == 'failed' or status == 'stopped' then return 'continue' end
  return status == 'canceled' and 'passed over' or status
end

local function states(ids, flow_key, shape)
  local counts, words = {}, {}
  local ends = tonumber(string.match(shape, '^%S+ %d+ %d+ (%d+)') or #ids)
  for i, id in ipairs(ids) do
    local status = status_of(id, flow_key)
    counts[status] = (counts[status] or 0) + 1
    if i > #ids - ends and status ~= 'finished' then counts['open ends'] = 1 end
  end
  for status, number in pairs(counts) do
    words[#words + 1] = status
    words[#words + 1] = number
  end
  return words
end

local function describe(flow, time)
  local key, ids_key = 'rqjobs:flow:' .. flow, 'rqjobs:flow-jobs:' .. flow
  local shape = redis.pcall('HGET', key, ':shape')
  local number = redis.pcall('LLEN', ids_key)
  if type(shape) ~= 'string' or type(number) ~= 'number' or number == 0 then
    return {flow, time, '', 0, 0, '', '', {}}
  end
  local counted = {}
  if number <= left then
    left = left - number
    counted = states(redis.call('LRANGE', ids_key, 0, -1), key, shape)
  end
  local first, last = redis.call('LINDEX', ids_key, 0), redis.call('LINDEX', ids_key, -1)
  return {flow, time, shape, number, redis.call('HLEN', key) - 1, description_of(first),
    description_of(last), counted}
end

local found = {}
local members = redis.pcall('ZREVRANGEBYSCORE', KEYS[1], ARGV[1], '-inf', 'WITHSCORES', 'LIMIT', 0,
  max_flows)
if members.err then return found end
for i = 1, #members, 2 do found[#found + 1] = describe(members[i], members[i + 1]) end
return found
