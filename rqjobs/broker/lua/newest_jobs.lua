-- Find the newest jobs of one registry over many queues.
--
-- ARGV  1 "queue", or a registry as RQ's keys name it   2 at most so many   then names of queues
-- Promise: nothing is written; a key of the wrong type counts as empty.
-- Returns {{moment, id}, …}, the newest first; the moment is when the job ended, or else was enqueued or created.

local kind, most, found = ARGV[1], tonumber(ARGV[2]), {}
for i = 3, #ARGV do
  local key, ids = 'rq:' .. kind .. ':' .. ARGV[i], nil
  if kind == 'queue' then
    ids = redis.pcall('LRANGE', key, -most, -1)
  else
    local extra = kind == 'failed' and #stopped_in(ARGV[i]) or 0
    ids = redis.pcall('ZREVRANGE', key, 0, most + extra - 1)
  end
  for _, member in ipairs(ids) do  -- an error has none
    local id = string.match(member, '^[^:]*')
    local fields = read(id, 'ended_at', 'enqueued_at', 'created_at', 'status')
    if fields and not (kind == 'failed' and fields[4] == 'stopped') then found[#found + 1] = {fields[1] or fields[2] or fields[3] or '', id} end
  end
end
table.sort(found, function(one, other) return one[1] > other[1] end)
for i = #found, most + 1, -1 do found[i] = nil end
return found
