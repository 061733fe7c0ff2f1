-- Put claimed jobs that have not begun back at the front of their queues, in order.
-- All ways back into a queue are listed in transitions.py.
--
-- KEYS  1 rqjobs:claims:<worker>   2 rqjobs:process:<worker>
-- ARGV  1 which: "all" (the worker runs none of them), "unknown" (jobs that a blocking pop
--       delivered and no claim has adopted), or "tokens"   2 the worker's process, or ""
--       then, for "tokens", the tokens
-- Promise: a job that is no longer in the claims, carries another token (it was claimed again), was
-- enqueued again since, or whose queue's key has the wrong type, is left alone. So is every job if
-- the name belongs to another process by now. No crash is counted.
-- Returns the ids that were put back.

local claims, which, process = KEYS[1], ARGV[1], ARGV[2]
local worker = string.sub(claims, 15)
local tokens, released = {}, {}
for i = 3, #ARGV do tokens[ARGV[i]] = true end
local owner = process ~= '' and redis.pcall('HGET', KEYS[2], 'process')
if type(owner) == 'string' and owner ~= process then return released end

local function is_meant(token)
  if which == 'all' then return true end
  if which == 'unknown' then return not token end
  return token and tokens[token]
end

local function release(id, fields)
  local queue, status, token, holder = fields[1], fields[2], fields[3], fields[4]
  local waits = queue and is_active(status) and not is_in_place(id, queue, status)
  if is_held_by_another(id, worker, token, holder) then
    drop_claim(claims, queue, id, false)
  elseif not waits then
    drop_claim(claims, queue, id, queue and token)
  elseif put_back(queue, id) then
    released[#released + 1] = id
    drop_claim(claims, queue, id, token)
  end
end

local ids = redis.pcall('LRANGE', claims, 0, -1)
for i = #ids, 1, -1 do
  local fields = read_job(ids[i], 'origin', 'status', 'rqjobs_token', 'worker_name') or {}
  if is_meant(fields[3]) then release(ids[i], fields) end
end
return released
