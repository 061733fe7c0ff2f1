-- Drop entries of rqjobs:unique that have no meaning any more: their job has ended or is gone.
-- Such a key is free already. This keeps the hash small.
--
-- KEYS  1 rqjobs:unique
-- ARGV  1 cursor of the last call, "0" at first   2 about how many entries to look at
-- Promise: the entry of a job that waits or runs stays, and so does that of a kept key.
-- Returns the next cursor ("0": no more).

local scan = redis.pcall('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
if scan.err then return '0' end  -- the wrong type, or the stored cursor is foreign data
for i = 1, #scan[2], 2 do
  if not unique_job(scan[2][i]) then redis.call('HDEL', KEYS[1], scan[2][i]) end
end
return scan[1]
