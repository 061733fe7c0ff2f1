-- Check the keys for which jobs wait: free the slots of jobs that no worker has claimed, and wake
-- the first job if there is room. A slot is freed and used without this; it puts right what a
-- foreign program has done, such as the cancel of a job that was woken.
--
-- KEYS  1 rqjobs:waiting-keys
-- ARGV  1 cursor of the last call, "0" at first   2 about how many keys to look at
-- Promise: a job whose claim exists keeps its slot.
-- Returns the next cursor ("0": no more), and the keys.

local scan = redis.pcall('SSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
if scan.err then return {'0', {}} end

local function free_unused_slots(key)
  local slots = redis.pcall('HGETALL', 'rqjobs:slots:' .. key)  -- an error has no elements
  for i = 1, #slots, 2 do
    local id, worker = slots[i], slots[i + 1]
    if type(redis.pcall('LPOS', 'rqjobs:claims:' .. worker, id)) ~= 'number' then
      redis.call('HDEL', 'rqjobs:slots:' .. key, id)
      redis.pcall('HDEL', 'rqjobs:slots-of:' .. worker, id)
    end
  end
end

-- Whether the job that was woken last has not been claimed yet. If nobody claims from its queue, it
-- does not hold up a job of another queue.
local function is_one_on_its_way(key)
  local id = redis.pcall('HGET', 'rqjobs:last-woken', key)
  local fields = type(id) == 'string' and read_job(id, 'status', 'rqjobs_woken', 'origin')
  if not fields or fields[1] ~= 'queued' or fields[2] ~= '1' then return false end
  if is_served(fields[3] or '') then return true end
  local job = first_waiting(key)
  return not job or not is_served(job.queue)
end

for _, key in ipairs(scan[2]) do
  free_unused_slots(key)
  if not is_one_on_its_way(key) then wake(key, 1) end
end
return scan
