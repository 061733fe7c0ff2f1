-- Count what stands in the places of queues.
--
-- ARGV  names of queues
-- Promise: nothing is written; a key of the wrong type counts as empty.
-- Returns, for each queue in which there is something: its name, when the first that waits was enqueued, as RQ writes it,
-- then how many stand in: queue, intermediate, scheduled, deferred, wip, finished, failed, canceled,
-- and how many of the failed jobs somebody has stopped, which are not counted there.

local function count(command, key)
  local number = redis.pcall(command, key)
  return type(number) == 'number' and number or 0
end

local found = {}
for _, name in ipairs(ARGV) do
  local queue = 'rq:queue:' .. name
  local one, total = {name, ''}, 0
  for i, key in ipairs({queue, queue .. ':intermediate', 'rq:scheduled:' .. name, 'rq:deferred:' .. name,
      'rq:wip:' .. name, 'rq:finished:' .. name, 'rq:failed:' .. name, 'rq:canceled:' .. name}) do
    local number = count(i < 3 and 'LLEN' or 'ZCARD', key)
    one[i + 2] = number
    total = total + number
  end
  one[11] = one[9] > 0 and #stopped_in(name) or 0
  one[9] = one[9] - one[11]
  if one[3] > 0 then
    local fields = read(redis.call('LINDEX', queue, 0), 'enqueued_at')
    one[2] = fields and fields[1] or ''
  end
  if total > 0 then found[#found + 1] = one end
end
return found
