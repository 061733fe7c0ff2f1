-- Add an entry to the list of activity, or replace one, or drop one.
--
-- KEYS  1 rqjobs:activity
-- ARGV  1 the id of the entry that is replaced or dropped, or ""   2 number of entries to keep
--       then the fields and values of the new entry; none if the old one is only dropped
-- Promise: a Redis without free memory accepts the writes, as in try_login.lua: an administrator
-- who frees its memory is recorded too.
-- Returns the id of the new entry, or "".

local stream, old = KEYS[1], ARGV[1]
if redis.call('TYPE', stream).ok ~= 'stream' then redis.call('DEL', stream) end
redis.call('XDEL', stream, old ~= '' and old or '0-1')
if #ARGV < 3 then return '' end
return redis.call('XADD', stream, 'MAXLEN', '~', ARGV[2], '*', unpack(ARGV, 3))
