-- Keep the cursors and the progress of a running job.
--
-- KEYS  1 job hash
-- ARGV  1 token   then fields and values
-- Promise: they are written only if the job still carries this token.
-- Returns "kept", "canceled" (kept; the job was canceled while it ran), or "lost" (the job was
-- deleted, or has been claimed or enqueued again).

local job, token = KEYS[1], ARGV[1]
local fields = redis.pcall('HMGET', job, 'rqjobs_token', 'status')  -- an error has no elements
if fields[1] ~= token then return 'lost' end
redis.call('HSET', job, unpack(ARGV, 2))
return fields[2] == 'canceled' and 'canceled' or 'kept'
