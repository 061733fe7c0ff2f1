-- Remember how the last job of a schedule ended.
--
-- KEYS  1 schedule   2 its outcomes   3 rqjobs:schedules:unfinished
-- ARGV  1 job id   2 how and when it ended
-- Promise: nothing is left behind for a schedule that was deleted.

if redis.call('EXISTS', KEYS[1]) == 1 then redis.pcall('HSET', KEYS[2], ARGV[1], ARGV[2]) end
redis.call('HDEL', KEYS[3], ARGV[1])
