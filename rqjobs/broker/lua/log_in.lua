-- Record a login.
--
-- KEYS  1 rqjobs:sessions   2 the counter and 3 the pause of wrong passwords, which are cleared
-- ARGV  1 the login   2 seconds that it lasts
-- Promise: a Redis without free memory accepts the writes, as in try_login.lua.

local sessions, login, seconds = KEYS[1], ARGV[1], ARGV[2]
redis.call('DEL', KEYS[2], KEYS[3])
if redis.call('TYPE', sessions).ok ~= 'zset' then redis.call('DEL', sessions) end
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', sessions, '-inf', now)
redis.call('ZADD', sessions, now + seconds, login)
redis.call('EXPIRE', sessions, seconds)
