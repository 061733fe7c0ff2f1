-- Store a schedule, change it, or remove it.
--
-- KEYS  1 rqjobs:schedules   2 the schedule's hash   3 the fields of its jobs   4 revision counter
--       5 the schedulers' wake-up channel   6 its runs   7 their outcomes
--       8 rqjobs:schedules:unfinished   9 rqjobs:schedules:announced
--       10 rqjobs:outbox, if the change is a row of the outbox
-- ARGV  1 name   2 the revision that the caller has read; "" if there was no such schedule
--       3 the due time of its next job, in Unix seconds; "never"; "" to leave it as it is
--       4 "new": another rule or call, which gets a new revision; "same"; "remove"
--       5 number of the following words that belong to its own hash
--       then those fields and values; then, for "new", the fields and values of its jobs;
--       then, for a row, the words of `take_row`
-- Promise: the change is made if the schedule still has the revision that the caller has read, else
-- nothing is done. That of a row is made once.
-- Returns the revision that it has now, "removed", or "" (it has changed in between); or, for a row,
-- "already moved" or "read too long ago".

local row, reason = take_row(KEYS[10])
if reason then return redis.status_reply(reason) end
local name, revision_read, due, change = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local own_words = tonumber(ARGV[5])
local schedules_key, schedule_key, job_key, runs_key = KEYS[1], KEYS[2], KEYS[3], KEYS[6]
local revision = redis.call('HGET', schedule_key, 'revision') or ''
if revision ~= revision_read then return '' end
redis.call('ZSCORE', schedules_key, name)  -- fails before the first write if of the wrong type

local function remove()
  local runs = redis.pcall('LRANGE', runs_key, 0, -1)  -- an error has no elements
  for _, run in ipairs(runs) do
    redis.pcall('HDEL', KEYS[8], string.match(run, '%S*$'))
  end
  redis.call('DEL', schedule_key, job_key, runs_key, KEYS[7])
  redis.call('ZREM', schedules_key, name)
  redis.pcall('INCR', KEYS[9])  -- the schedulers compare again: the code may declare it
  mark_row(row)
  return 'removed'
end

local function next_revision()
  local number = redis.pcall('INCR', KEYS[4])
  if type(number) ~= 'number' then  -- foreign data; the Unix time exceeds any revision so far
    number = redis.call('TIME')[1]
    redis.call('SET', KEYS[4], number)
  end
  return tostring(number)
end

if change == 'remove' then return remove() end
if #ARGV > 6000 then  -- more than Lua can unpack
  return redis.error_reply('ERR a schedule has fewer fields')
end
if change == 'new' then revision = next_revision() end
redis.call('HSET', schedule_key, 'revision', revision, unpack(ARGV, 6, 5 + own_words))
if change == 'new' then
  redis.call('DEL', job_key)
  redis.call('HSET', job_key, unpack(ARGV, 6 + own_words))
end
if due == 'never' then
  redis.call('ZADD', schedules_key, '+inf', name)
elseif due ~= '' then
  redis.call('ZADD', schedules_key, due, name)
  redis.pcall('PUBLISH', KEYS[5], due)
end
mark_row(row)
return revision
