-- Note how the last job of a schedule ended.
--
-- KEYS  1 schedule   2 its outcomes   3 rqjobs:schedules:unfinished
-- ARGV  1 job id   2 how and when it ended
-- Promise: nothing remains of a schedule that was deleted.

local schedule_key, outcomes_key, unfinished_key = KEYS[1], KEYS[2], KEYS[3]
local id, outcome = ARGV[1], ARGV[2]
if redis.call('EXISTS', schedule_key) == 1 then redis.pcall('HSET', outcomes_key, id, outcome) end
redis.call('HDEL', unfinished_key, id)
