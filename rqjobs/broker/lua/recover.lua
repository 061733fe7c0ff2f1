-- Take one job out of a place where stock RQ left it and put it back at the front of its queue.
--
-- KEYS  1 intermediate   2 scheduled   3 deferred   4 wip   5 queue   6 executions   7 execution hash
--       8 rqjobs:leases   9 rq:worker:<owner>
-- ARGV  1 where it was found: "wip", "intermediate", or "stray" (in no place)   2 job id   3 its member in wip
--       4 owner   5 queue's name   6 deaths after which it fails   7 seconds in which they count   8 its traceback
--       9 RQ's default failure_ttl   10 now, as RQ writes it   11 for a stray, "1" if it was enqueued after its last end
-- Promise: the job is moved only if it still stands where it was found and its owner is still dead, and then in
-- this one step; it is never in two places, and a death is counted only for a job that had begun.
-- A stray that is among the ended jobs has ended, unless it was enqueued again since: its status was overwritten by a
-- stale save(), and is put right.
-- Returns what happened: "requeued", "failed", or why nothing did: "moved", "alive", "gone", "ended", "placed".

local found, id, member, owner, queue = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local function running()
  for _, entry in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
    if string.sub(entry, 1, #id + 1) == id .. ':' then return true end
  end
  return false
end

local function elsewhere()
  return redis.call('ZSCORE', KEYS[2], id) or redis.call('ZSCORE', KEYS[3], id) or redis.call('LPOS', KEYS[5], id)
end

if found == 'wip' then
  if not redis.call('ZSCORE', KEYS[4], member) then return 'moved' end
  local lease = owner ~= '' and redis.call('ZSCORE', KEYS[8], owner)
  if lease and tonumber(lease) > clock() then return 'alive' end
  if owner ~= '' and not lease and redis.call('EXISTS', KEYS[9]) == 1 then return 'alive' end
elseif found == 'intermediate' then
  if not redis.call('LPOS', KEYS[1], id) or running() then return 'moved' end
elseif running() or redis.call('LPOS', KEYS[1], id) or elsewhere() then
  return 'moved'
else
  for _, name in ipairs(redis.call('ZRANGE', KEYS[8], 0, -1)) do  -- between a wake-up and the claim
    if redis.call('LPOS', 'rqjobs:claims:' .. name, id) then return 'moved' end
  end
end

local function ended()
  if found ~= 'stray' or ARGV[11] == '1' then return nil end
  for _, place in ipairs({'failed', 'canceled', 'finished'}) do
    if redis.call('ZSCORE', 'rq:' .. place .. ':' .. queue, id) then return place end
  end
end

local fields = read(id, 'data', 'status')

local outcome = 'requeued'
if not fields or not (fields[1] or fields[2]) then
  outcome = 'gone'
elseif not waits(fields[2]) then
  outcome = 'ended'
elseif elsewhere() then
  outcome = 'placed'
elseif ended() then
  redis.call('HSET', 'rq:job:' .. id, 'status', ended())
  outcome = 'ended'
elseif found == 'wip' and fields[2] == 'started' and count_death(id, ARGV[7]) >= tonumber(ARGV[6]) then
  bury(queue, id, owner, ARGV[8], ARGV[10], ARGV[9])
  outcome = 'failed'
else
  put_back(queue, id)  -- its key was read, so it fits
end
redis.pcall('ZREM', KEYS[4], member)
redis.pcall('LREM', KEYS[1], 0, id)
if found == 'wip' then
  redis.pcall('ZREM', KEYS[6], string.sub(member, #id + 2))
  redis.call('DEL', KEYS[7])
end
return outcome
