-- Make the jobs of a schedule's ticks that are due, or the one that somebody wants now.
--
-- KEYS  1 rqjobs:schedules   2 the schedule's hash   3 the fields of its jobs   4 its runs   5 their outcomes
--       6 ids of the jobs whose outcome is not known yet   7 queue   8 rq:queues
-- ARGV  1 name   2 its revision   3 its next tick, as the caller read it; "" if this is no tick
--       4 the tick after those, "" if there is none   5 when that one is due, Unix seconds   6 now, as RQ writes it
--       7 "1": a tick comes although a job of this schedule has not ended   8 how many ticks were missed and make no job
--       9 the last tick that is dealt with   10 how many runs are remembered   then pairs of a tick and its job's id
-- Promise: one tick makes one job at most, whoever else ticks beside us and wherever the caller or the clock before it
-- died: its jobs are made and the schedule goes on to its next tick in this one step, if it still stands where the
-- caller read it. By Redis's clock no tick comes early.
-- Returns how many jobs were made, how many ticks were skipped because of an overlap; or -1 (nothing was done: the
-- schedule was changed, paused, or somebody else was here), -2 (nothing was done: the key of its queue, of its
-- runs or of their outcomes, or rq:queues, is of the wrong type).

local timed, now = ARGV[3] ~= '', clock()
local own = redis.call('HMGET', KEYS[2], 'revision', 'state', 'next', 'left', 'made', 'missed', 'overlapped')
local job = redis.call('HGETALL', KEYS[3])
if own[1] ~= ARGV[2] or #job == 0 or #job > 6000 then return {-1, 0} end  -- more fields, `unpack` could not take
if timed then
  if own[2] ~= 'active' then redis.call('ZADD', KEYS[1], 'XX', '+inf', ARGV[1]) end
  local due = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '')
  if own[2] ~= 'active' or own[3] ~= ARGV[3] or not due or due > now then return {-1, 0} end
end

local function fits(key, wanted)
  local kind = redis.call('TYPE', key).ok
  return kind == 'none' or kind == wanted
end

if not fits(KEYS[4], 'list') or not fits(KEYS[5], 'hash') or not fits(KEYS[7], 'list') or not fits(KEYS[8], 'set') then
  return {-2, 0}
end
local open = fits(KEYS[6], 'hash')  -- all schedules share it; without it they only forget outcomes

local function busy()
  for _, run in ipairs(redis.call('LRANGE', KEYS[4], 0, -1)) do
    local fields = read(string.match(run, '%S*$'), 'status')
    if fields and (waits(fields[1]) or fields[1] == 'deferred') then return true end
  end
end

local options = {}
for i = 1, #job, 2 do options[job[i]] = job[i + 1] end

local function make(tick, id)
  local key = 'rq:job:' .. id
  if redis.call('EXISTS', key) == 1 then return false end  -- somebody gave this id to a job of his own
  redis.call('HSET', key, 'status', 'queued', 'created_at', ARGV[6], 'enqueued_at', ARGV[6], 'rqjobs_schedule', ARGV[1],
    unpack(job))
  if lifetime(options.ttl) then redis.call('EXPIRE', key, lifetime(options.ttl)) end
  redis.call(options.enqueue_at_front == '1' and 'LPUSH' or 'RPUSH', KEYS[7], id)
  redis.call('SADD', KEYS[8], KEYS[7])
  if open then redis.call('HSET', KEYS[6], id, ARGV[1]) end
  redis.call('LPUSH', KEYS[4], (tick == '' and 'now' or tick) .. ' ' .. string.format('%.3f', now) .. ' ' .. id)
  while redis.call('LLEN', KEYS[4]) > tonumber(ARGV[10]) do
    local old = string.match(redis.call('RPOP', KEYS[4]), '%S*$')
    redis.call('HDEL', KEYS[5], old)
    if open then redis.call('HDEL', KEYS[6], old) end
  end
  return true
end

local made, skipped, missed, left = 0, 0, tonumber(ARGV[8]), tonumber(own[4] or '')
for i = 11, #ARGV, 2 do
  if timed and left and left < 1 then break end
  if timed and ARGV[7] ~= '1' and busy() then
    skipped = skipped + 1
  elseif make(ARGV[i], ARGV[i + 1]) then
    made = made + 1
    if left and timed then left = left - 1 end
  else
    missed = missed + 1
  end
end
if not timed then return {made, 0} end

local ended = ARGV[4] == '' or (left and left < 1)
redis.call('HSET', KEYS[2], 'last', ARGV[9], 'next', ended and '' or ARGV[4], 'state', ended and 'ended' or 'active')
if left then redis.call('HSET', KEYS[2], 'left', left) end
for i, count in ipairs({made, missed, skipped}) do
  local field, before = ({'made', 'missed', 'overlapped'})[i], tonumber(own[4 + i] or '') or 0
  if count > 0 then redis.call('HSET', KEYS[2], field, string.format('%.0f', before + count)) end
end
redis.call('ZADD', KEYS[1], ended and '+inf' or ARGV[5], ARGV[1])
return {made, skipped}
