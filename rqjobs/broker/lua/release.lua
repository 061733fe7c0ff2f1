-- Put claimed jobs that have not begun back at the front of their queues, in their order.
--
-- KEYS  1 rqjobs:claims:<me>   2 rqjobs:process:<me>
-- ARGV  1 "all" (nobody runs any of them any more), "unknown" (those that came with a wake-up and that nobody has
--       claimed yet), or "tokens"   2 its process, or ""   then, for "tokens", their tokens
-- Promise: what is no longer in the claims (it was taken back), or carries another token (it was claimed again), is
-- left alone, and so is a job that was enqueued again since, or whose queue has a key of the wrong type. So is
-- everything if the name is another process's by now. Deaths are not counted.
-- Returns the ids that were put back.

local which, these, back = ARGV[1], {}, {}
for i = 3, #ARGV do these[ARGV[i]] = true end
local process = ARGV[2] ~= '' and redis.pcall('HGET', KEYS[2], 'process')
if type(process) == 'string' and process ~= ARGV[2] then return back end
local ids = redis.pcall('LRANGE', KEYS[1], 0, -1)  -- an error, which has none, if it is no list
for i = #ids, 1, -1 do
  local id = ids[i]
  local fields = read(id, 'origin', 'status', 'rqjobs_token', 'worker_name') or {}
  local queue, current = fields[1], fields[3]
  if which == 'all' or (which == 'unknown' and not current) or (current and these[current]) then
    local waiting = queue and waits(fields[2]) and not stands(id, queue, fields[2])
    if is_held_by_another(id, string.sub(KEYS[1], 15), current, fields[4]) then waiting, current = false, false end
    if waiting and put_back(queue, id) then back[#back + 1] = id end
    if not waiting or back[#back] == id then drop(KEYS[1], queue, id, queue and current) end
  end
end
return back
