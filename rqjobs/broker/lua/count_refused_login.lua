-- Count a wrong password in the list of activity: one entry for each minute.
--
-- KEYS  1 rqjobs:activity:refused
-- ARGV  1 number of entries to keep   2 the address of the client
-- Promise: an attacker adds one entry a minute, to a list of its own, so nothing else is pushed out.
-- A Redis without free memory accepts the writes, as in try_login.lua.

local stream, keep, address = KEYS[1], ARGV[1], ARGV[2]
if redis.call('TYPE', stream).ok ~= 'stream' then redis.call('DEL', stream) end
local count, minute = 1, math.floor(redis.call('TIME')[1] / 60)
local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
if last and math.floor(tonumber(last[1]:match('^%d+')) / 60000) == minute then
  for i = 1, #last[2], 2 do
    if last[2][i] == 'count' then count = (tonumber(last[2][i + 1]) or 0) + 1 end
  end
  redis.call('XDEL', stream, last[1])
else
  redis.call('XTRIM', stream, 'MAXLEN', '~', keep)
end
redis.call('XADD', stream, 'MAXLEN', '~', keep, '*', 'count', count, 'address', address)
