-- Bound the failed jobs of a queue: their number, and how long they are kept.
--
-- ARGV  1 queue   2 maximum number of failed jobs, 0 for no limit
--       3 maximum number of seconds for which one is kept, 0 for no limit
--       4 maximum number of jobs to look at
-- Promise: a job goes with its result, its entry and its place in a group. Those that would expire
-- first are deleted first, and those that would not expire (RQ writes -1 for them) last. Below the
-- limits nothing is written.
-- Returns the number of deleted jobs, and 1 if more may be over a limit, else 0.

local queue, max_jobs = ARGV[1], tonumber(ARGV[2])
local max_age, step = tonumber(ARGV[3]), tonumber(ARGV[4])
local failed = 'rq:failed:' .. queue
if not fits(failed, 'zset') then return {0, 0} end
local surplus = max_jobs > 0 and redis.call('ZCARD', failed) - max_jobs or 0
local deleted = 0
if surplus > 0 then
  local count = math.min(surplus, step)
  local ids = redis.call('ZRANGEBYSCORE', failed, 0, '+inf', 'LIMIT', 0, count)
  if #ids == 0 then ids = redis.call('ZRANGE', failed, 0, count - 1) end
  for _, id in ipairs(ids) do
    if delete_failed_job(id, queue) then deleted = deleted + 1 end
  end
end

-- Let a job that would be kept for longer expire after the maximum age.
local function shorten(id, expiry)
  local job = 'rq:job:' .. id
  redis.call('ZADD', failed, 'XX', expiry, id)
  redis.pcall('ZADD', 'rqjobs:stopped:' .. queue, 'XX', expiry, id)
  local fields = read_job(id, 'status', 'rqjobs_log')
  if not fields or not (fields[1] == 'failed' or fields[1] == 'stopped') then return end
  redis.call('EXPIRE', job, max_age)
  expire_with(job, 'rq:results:' .. id)
  if fields[2] then expire_with(job, 'rqjobs:log:' .. id) end
end

local too_long = {}
if max_age > 0 then
  local expiry = string.format('%.3f', redis_time() + max_age)
  too_long = redis.call('ZRANGEBYSCORE', failed, '(' .. expiry, '+inf', 'LIMIT', 0, step)
  if #too_long == 0 then
    too_long = redis.call('ZRANGEBYSCORE', failed, '-inf', '(0', 'LIMIT', 0, step)
  end
  for _, id in ipairs(too_long) do shorten(id, expiry) end
end
return {deleted, (surplus > step or #too_long > 0) and 1 or 0}
