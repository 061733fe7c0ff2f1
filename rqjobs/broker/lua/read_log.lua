-- Read the log of a job: some entries of its stream.
--
-- KEYS  1 rqjobs:log:<id>
-- ARGV  1 the id after which to begin, "0-0" for all   2 maximum number of entries
--       3 maximum number of bytes
-- Promise: the reply is no longer than ARGV 3. A longer entry is left out; none of ours is.
-- Returns "1" if there are more entries, else "0"; the newest id of the log, "0-0" for none; the id
-- of the last entry that was looked at; and the entries, as XRANGE gives them. A key of the wrong
-- type has none.

local newest = redis.pcall('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local entries, last, has_more = log_entries(KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]))
return {has_more and '1' or '0', newest and newest[1] or '0-0', last, entries}
