-- Cancel a delayed job, or give it another time.
--
-- KEYS  1 job hash   2 scheduled   3 rqjobs:crash-backoff:<queue>   4 canceled   5 the clock's channel
-- ARGV  1 job id   2 "cancel", "at" or "in"   3 Unix seconds ("at"), or seconds from now ("in")
--       4 seconds after which the clock looks by itself
-- Promise: the job is canceled or has its new time, or it was not waiting for a time any more and nothing was done.
-- Returns the new time, "canceled", or "not delayed".

if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 'not delayed' end
local before = standing(ARGV[1])
if not before or not waits(before.status) then return 'not delayed' end
redis.call('ZSCORE', KEYS[3], ARGV[1])  -- raises, before anything is written, if that is no sorted set
if ARGV[2] == 'cancel' then
  redis.call('HSET', KEYS[1], 'status', 'canceled')
  redis.pcall('ZADD', KEYS[4], string.format('%d', clock()), ARGV[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  revoke(ARGV[1], before)
  return 'canceled'
end
local due = tonumber(ARGV[3]) + (ARGV[2] == 'in' and clock() or 0)
local moment = string.format('%.6f', due)
redis.call('ZADD', KEYS[2], moment, ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
revoke(ARGV[1], before)
if due < clock() + tonumber(ARGV[4]) then redis.pcall('PUBLISH', KEYS[5], moment) end
return moment
