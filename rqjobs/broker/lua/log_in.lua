-- Note a login.
--
-- KEYS  1 rqjobs:sessions   2-3 the counter and the pause of wrong passwords, which are forgiven
-- ARGV  1 the login   2 how long it lasts, seconds
-- Promise: a full Redis lets its writes through, as those of try_login.lua.

redis.call('DEL', KEYS[2], KEYS[3])
if redis.call('TYPE', KEYS[1]).ok ~= 'zset' then redis.call('DEL', KEYS[1]) end
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
