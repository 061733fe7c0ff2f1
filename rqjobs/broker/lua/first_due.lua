-- Find when the first scheduled job of each queue is due.
--
-- ARGV  names of queues
-- Promise: nothing is written.
-- Returns now, then for each queue the Unix time; "" if it has no scheduled job; or "-inf" if its
-- key has the wrong type, because the promotion then reports what is wrong.

local reply = {string.format('%.6f', redis_time())}
for i, name in ipairs(ARGV) do
  local first = redis.pcall('ZRANGE', 'rq:scheduled:' .. name, 0, 0, 'WITHSCORES')
  reply[i + 1] = first.err and '-inf' or first[2] or ''
end
return reply
