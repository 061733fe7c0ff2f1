-- Find the queues that a sweep has to look at.
--
-- KEYS  1 rq:queues
-- ARGV  1 cursor of the last call, "0" at first   2 about how many queues to look at
--       3 maximum number of failed jobs, 0 for no limit   4 maximum number of seconds for which one
--       is kept, 0 for no limit
--       then names of further queues to look at
-- Promise: nothing is written.
-- Returns the next cursor ("0": no more), then the names of queues that have jobs in wip, in the
-- intermediate list, or delayed after a crash, or notes of a sweep about intermediate jobs, or
-- failed jobs over a limit.

local cursor, count, max_failed, max_age = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local latest_expiry = tonumber(redis.call('TIME')[1]) + max_age
local scan = redis.pcall('SSCAN', KEYS[1], cursor, 'COUNT', count)
local reply = {scan.err and '0' or scan[1]}

local function has_surplus(name)
  local failed = 'rq:failed:' .. name
  local number = redis.pcall('ZCARD', failed)
  if type(number) ~= 'number' or number == 0 then return false end
  if max_failed > 0 and number > max_failed then return true end
  if max_age == 0 then return false end
  return redis.call('ZCOUNT', failed, latest_expiry + 1, '+inf') > 0
    or redis.call('ZCOUNT', failed, '-inf', '(0') > 0  -- RQ writes -1 for jobs that do not expire
end

local function look_at(name)
  local number = redis.call('EXISTS', 'rq:wip:' .. name, 'rq:queue:' .. name .. ':intermediate',
    'rqjobs:crash-backoff:' .. name, 'rqjobs:sweep:intermediate:' .. name)
  if number > 0 or has_surplus(name) then reply[#reply + 1] = name end
end

for _, key in ipairs(scan[2] or {}) do look_at(string.gsub(key, '^rq:queue:', '')) end
for i = 5, #ARGV do look_at(ARGV[i]) end
return reply
