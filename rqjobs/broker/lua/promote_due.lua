-- Move the jobs of one queue that are due from the scheduled set into the queue.
--
-- KEYS  1 scheduled   2 queue   3 rq:queues   4 rqjobs:crash-backoff:<queue>   5 failed   6 rqjobs:scheduled-without-job:<queue>
--       7 the scheduler's lock
-- ARGV  1 at most so many   2 now, as RQ writes it   3 default timeout, seconds
--       4 seconds for which a due id without a job, or with one that runs or has ended, is kept, counted from when it was
--         first seen so: its enqueuer, if it is stock RQ, has yet to write the job. Then an id without a job, or with one
--         of another queue, is dropped, and any other job runs
--       5 "1": only jobs that wait because a process died under them; KEYS 4 tells which, because a thousand that wait
--       for a scheduler may be due before them
--       6 how many of those that are due to pass over: earlier calls found no job for them, and kept them
--       7 who must hold the lock, "" if that does not matter: a stock scheduler that has just got it moves jobs in steps
-- Promise: a due job is in the scheduled set or in the queue, never in both, whoever else promotes beside us; a run of it
-- in progress has lost it; if stock RQ has enqueued it again elsewhere since, it stays there. By Redis's clock none comes
-- early; the order is that of the due times; what crashed a horse comes to the front, where it was. What is no job goes
-- to the dead letters, and holds up nothing.
-- Returns how many were moved, how many were kept, whether there may be more that are due ("1"), now, and when the next
-- is due ("" if none is).

local now, crashed, most = clock(), ARGV[5] == '1', tonumber(ARGV[1])
if ARGV[7] ~= '' and redis.call('GET', KEYS[7]) ~= ARGV[7] then return {0, 0, '', tostring(now), ''} end
for key, kind in pairs({[KEYS[2]] = 'list', [KEYS[4]] = 'zset', [KEYS[6]] = 'hash'}) do
  if not fits(key, kind) then return redis.error_reply('WRONGTYPE the key ' .. key .. ' is no ' .. kind) end
end
local queue = string.sub(KEYS[1], 14)
local WAITING = {scheduled = true, queued = true, deferred = true, created = true}
local moved, kept, done, front, back = 0, 0, {}, {}, {}
local crashes = redis.call('EXISTS', KEYS[4]) == 1
local missing = redis.call('EXISTS', KEYS[6]) == 1

-- Whether an id is to be kept for now, because its job may yet have to be written.
local function is_young(id)
  local since = tonumber(missing and redis.call('HGET', KEYS[6], id) or '')
  if not since then
    redis.call('HSET', KEYS[6], id, string.format('%.6f', now))
    redis.call('EXPIRE', KEYS[6], 3600)
  end
  local young = not since or since > now - tonumber(ARGV[4])
  if young then kept = kept + 1 end
  return young
end

local function waits_elsewhere(id, status, origin)
  if status == 'scheduled' and origin == queue then return false end
  return stands(id, origin, status)
end

local function ready(id, fields, since)
  local job, ttl = 'rq:job:' .. id, lifetime(fields[7])
  redis.call('HSET', job, 'status', 'queued', 'enqueued_at', since or ARGV[2], 'timeout', fields[6] or ARGV[3])
  if ttl then redis.call('EXPIRE', job, ttl) end
  if fields[9] then revoke(id, {queue = fields[8] or '', worker = fields[10], token = fields[9]}) end
  moved = moved + 1
end

local moment = string.format('%.6f', now)
local due = redis.call('ZRANGEBYSCORE', KEYS[crashed and 4 or 1], '-inf', moment, 'WITHSCORES', 'LIMIT',
  crashed and 0 or ARGV[6], most)
for i = 1, #due, 2 do
  local id = due[i]
  local fields = read(id, 'status', 'enqueue_at_front', 'enqueue_at_front_on_retry', 'ended_at', 'enqueued_at',
    'timeout', 'ttl', 'origin', 'rqjobs_token', 'worker_name')
  local keep
  local again = crashes and redis.call('ZSCORE', KEYS[4], id)  -- it was in the queue already, and keeps its place
  local score = crashed and tonumber(redis.call('ZSCORE', KEYS[1], id) or '') or not crashed and tonumber(due[i + 1])
  if not score or score > now then
    keep = true  -- it crashed a horse once, and is not there any more, or for another time
  elseif not fields then
    redis.pcall('ZADD', KEYS[5], '+inf', id)
  elseif redis.call('HSTRLEN', 'rq:job:' .. id, 'data') == 0 then
    keep = is_young(id)
  elseif fields[1] == 'canceled' or waits_elsewhere(id, fields[1], fields[8]) then
    keep = false
  elseif not WAITING[fields[1]] and is_young(id) then
    keep = true
  elseif WAITING[fields[1]] or fields[8] == queue then
    ready(id, fields, again and fields[5])
    if again or fields[2] == '1' or (fields[3] == '1' and fields[4]) then
      table.insert(front, 1, id)
    else
      back[#back + 1] = id
    end
  end
  if not keep then
    done[#done + 1] = id
    if missing then redis.call('HDEL', KEYS[6], id) end
  end
  if crashes then redis.call('ZREM', KEYS[4], id) end
end
if #back > 0 then redis.call('RPUSH', KEYS[2], unpack(back)) end
for _, id in ipairs(front) do redis.call('LPUSH', KEYS[2], id) end
if moved > 0 then redis.pcall('SADD', KEYS[3], KEYS[2]) end
if #done > 0 then redis.call('ZREM', KEYS[1], unpack(done)) end
local later = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. moment, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
return {moved, kept, #due == 2 * most and '1' or '', moment, later[2] or ''}
