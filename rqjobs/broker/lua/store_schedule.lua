-- Store a schedule, change it, or remove it.
--
-- KEYS  1 rqjobs:schedules   2 the schedule's hash   3 the fields of its jobs   4 revision counter   5 the clock's channel
--       6 its runs   7 their outcomes   8 ids of the jobs whose outcome is not known yet   9 counter of what the
--       schedulers compare again
-- ARGV  1 name   2 the revision that the caller read; "" if there was no such schedule
--       3 when its next tick is due, in Unix seconds; "never"; "" to leave it
--       4 "new": rule or job are others, so it gets a new revision; "same"; "remove"
--       5 how many of the following words belong to its own hash, then those fields and values; then, if "new", those
--         of its jobs
-- Promise: it is done if the schedule still has the revision that the caller read, else nothing is done.
-- Returns the revision that it has now, "removed", or "" (it was changed in between).

local revision = redis.call('HGET', KEYS[2], 'revision') or ''
if revision ~= ARGV[2] then return '' end
redis.call('ZSCORE', KEYS[1], ARGV[1])  -- raises, before anything is written, if that is no sorted set
if ARGV[4] == 'remove' then
  local runs = redis.pcall('LRANGE', KEYS[6], 0, -1)  -- an error if somebody else wrote them
  for _, run in ipairs(runs) do
    redis.pcall('HDEL', KEYS[8], string.match(run, '%S*$'))
  end
  redis.call('DEL', KEYS[2], KEYS[3], KEYS[6], KEYS[7])
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.pcall('INCR', KEYS[9])  -- the code may declare one of this name
  return 'removed'
end
local own = tonumber(ARGV[5])
if #ARGV > 6000 then return redis.error_reply('ERR a schedule has fewer fields') end  -- of what `unpack` takes
if ARGV[4] == 'new' then
  revision = redis.pcall('INCR', KEYS[4])
  if type(revision) ~= 'number' then  -- somebody else wrote there; so high no counter of ours has come
    revision = redis.call('TIME')[1]
    redis.call('SET', KEYS[4], revision)
  end
  revision = tostring(revision)
end
redis.call('HSET', KEYS[2], 'revision', revision, unpack(ARGV, 6, 5 + own))
if ARGV[4] == 'new' then
  redis.call('DEL', KEYS[3])
  redis.call('HSET', KEYS[3], unpack(ARGV, 6 + own))
end
if ARGV[3] ~= '' then
  redis.call('ZADD', KEYS[1], ARGV[3] == 'never' and '+inf' or ARGV[3], ARGV[1])
  if ARGV[3] ~= 'never' then redis.pcall('PUBLISH', KEYS[5], ARGV[3]) end
end
return revision
