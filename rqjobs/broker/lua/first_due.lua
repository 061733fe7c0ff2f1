-- Say when the first scheduled job of each queue is due.
--
-- ARGV  names of queues
-- Promise: nothing is written.
-- Returns now, then for each queue the Unix time, "" if there is none, or "-inf" if its key is of the wrong type: to
-- promote it says what is wrong.

local found = {string.format('%.6f', clock())}
for i, name in ipairs(ARGV) do
  local first = redis.pcall('ZRANGE', 'rq:scheduled:' .. name, 0, 0, 'WITHSCORES')
  found[i + 1] = first.err and '-inf' or first[2] or ''
end
return found
