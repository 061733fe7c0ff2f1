-- Put jobs that wait for a limit, or for a paused function, back into the list of those that do. A
-- foreign program has removed them from it.
--
-- KEYS  1 the list   2 the set that names what is waited for
-- ARGV  1 the field that names what a job waits for   2 that name   then the ids in order
-- Promise: they come before the others of the list, in this order. A job that waits no longer, or is
-- in the list, is left alone.
-- Returns the ids that were put back.

local list, names, field, name = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
make_fit(list, 'list')
make_fit(names, 'set')
local restored = {}
for i = #ARGV, 3, -1 do
  local id = ARGV[i]
  local fields = read_job(id, 'status', 'origin', field) or {}
  if fields[1] == 'deferred' and fields[3] == name and is_in_place(id, fields[2], 'deferred')
      and not redis.call('LPOS', list, id) then
    redis.call('LPUSH', list, id)
    restored[#restored + 1] = id
  end
end
if redis.call('EXISTS', list) == 1 then redis.call('SADD', names, name) end
return restored
