-- Wake the jobs whose keys have a token again.
--
-- KEYS  1 rqjobs:rate-due
-- ARGV  1 maximum number of keys   2 maximum number of jobs of each key
-- Promise: a woken job enters its queue in the same step in which it stops waiting.
-- Returns now and the next due time, "" if there is none, both in Unix seconds; and the number of
-- woken jobs.

local rate_due, max_keys, max_jobs = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
make_fit(rate_due, 'zset')
local woken, now = 0, string.format('%.6f', redis_time())
for _, key in ipairs(redis.call('ZRANGEBYSCORE', rate_due, '-inf', now, 'LIMIT', 0, max_keys)) do
  redis.call('ZREM', rate_due, key)
  woken = woken + wake(key, max_jobs)
end
local first = redis.call('ZRANGE', rate_due, 0, 0, 'WITHSCORES')
return {now, first[2] or '', woken}
