-- Ignore a group of failed jobs until it fails again, or end that.
--
-- KEYS  1 rqjobs:failure-group:<group>
-- ARGV  1 "ignore", or "watch" to end that   2 who does it, or ""
-- Promise: nothing remains of a group that is over. The total of its failures at this moment is
-- kept, so a failure counts as a new one exactly if it is recorded after this step.
-- Returns 1; or 0 if there is no such group.

local key, action, who = KEYS[1], ARGV[1], ARGV[2]
if not fits(key, 'hash') or redis.call('EXISTS', key) == 0 then return 0 end
if action == 'watch' then
  redis.call('HDEL', key, 'ignored')
  return 1
end
local total = tonumber(redis.call('HGET', key, 'total') or '') or 0
redis.call('HSET', key, 'ignored', string.format('%.0f %.3f %s', total, redis_time(), who))
return 1
