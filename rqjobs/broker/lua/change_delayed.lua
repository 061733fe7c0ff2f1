-- Cancel a delayed job, or change its due time.
--
-- KEYS  1 job hash   2 scheduled   3 rqjobs:crash-backoff:<queue>   4 canceled
--       5 the queue's wake-up channel
-- ARGV  1 job id   2 "cancel", "at" or "in"   3 Unix seconds ("at"), or seconds from now ("in")
--       4 seconds between two polls of the scheduler
-- Promise: the job is canceled or has its new due time, after which it expires as before; or it was
-- no longer delayed, and nothing is done.
-- Returns the new due time, "canceled", or "not delayed".

local job, scheduled, crash_backoff, canceled, channel = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, change, seconds, poll_seconds = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if not redis.call('ZSCORE', scheduled, id) then return 'not delayed' end
local before = placement(id)
if not before or not is_active(before.status) then return 'not delayed' end
redis.call('ZSCORE', crash_backoff, id)  -- fails here, before the first write, if of the wrong type

if change == 'cancel' then
  redis.call('HSET', job, 'status', 'canceled')
  redis.pcall('ZADD', canceled, string.format('%d', redis_time()), id)
  redis.call('ZREM', scheduled, id)
  redis.call('ZREM', crash_backoff, id)
  revoke(id, before)
  if before.unique_key then forget_unique(id, before.unique_key) end
  note_unfinished(id)
  return 'canceled'
end
local due = seconds + (change == 'in' and redis_time() or 0)
local due_text = string.format('%.6f', due)
redis.call('ZADD', scheduled, due_text, id)
local expires = read_job(id, 'rqjobs_expires')[1]
if expires then start_expiry(id, expires, due) end
redis.call('ZREM', crash_backoff, id)
revoke(id, before)
if due < redis_time() + poll_seconds then redis.pcall('PUBLISH', channel, due_text) end
return due_text
