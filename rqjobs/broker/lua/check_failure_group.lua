-- Remove the jobs of a group that are no longer failed ones, and the group itself when it is over.
--
-- KEYS  1 rqjobs:failure-groups
-- ARGV  1 the group's id   2 maximum number of jobs to look at
--       3 seconds for which a group without jobs is kept after its last failure
-- Promise: a failed job of the group stays. A job leaves its group in the step that moves it, but
-- plain RQ deletes and requeues jobs too, and a job's hash can expire. Each call goes on where the
-- last one ended.
-- Returns the number of jobs removed.

local groups, group, step, kept = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local key, jobs = 'rqjobs:failure-group:' .. group, 'rqjobs:failure-group-jobs:' .. group
if not fits(groups, 'zset') or not fits(key, 'hash') or not fits(jobs, 'zset') then return 0 end

local function is_of_group(id)
  local fields = read_job(id, 'status', 'origin', 'rqjobs_failure_group')
  if not fields or fields[1] ~= 'failed' or fields[3] ~= group then return false end
  return type(redis.pcall('ZSCORE', 'rq:failed:' .. (fields[2] or ''), id)) == 'string'
end

local start = tonumber(redis.call('HGET', key, 'checked') or '') or '-inf'
local entries = redis.call('ZRANGEBYSCORE', jobs, start, '+inf', 'WITHSCORES', 'LIMIT', 0, step)
local removed = 0
for i = 1, #entries, 2 do
  if not is_of_group(entries[i]) then
    redis.call('ZREM', jobs, entries[i])
    removed = removed + 1
  end
end
if #entries >= 2 * step then
  redis.call('HSET', key, 'checked', entries[#entries])
else
  redis.call('HDEL', key, 'checked')
end
local last = tonumber(redis.call('ZSCORE', groups, group) or '') or 0
if last < redis_time() - kept and redis.call('ZCARD', jobs) == 0 then
  redis.call('ZREM', groups, group)
  redis.call('DEL', key)
end
return removed
