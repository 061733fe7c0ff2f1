-- Renew a worker's lease, and write where its processes are.
--
-- KEYS  1 rqjobs:leases   2 rqjobs:process:<worker>
-- ARGV  1 worker   2 lease, seconds   3 "1" for the worker's first lease   4 "process"
--       5 the worker's process   then further fields and values
-- Promise: while a process has a lease, its name belongs to it.
-- Returns "new" if the worker had no lease, "renewed" if it had one, "name taken" if the name
-- belongs to another process.

local leases, process_key = KEYS[1], KEYS[2]
local worker, seconds, is_first, process = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', ARGV[5]
local time, owner = redis.call('TIME'), redis.call('HGET', process_key, 'process')
local has_lease = redis.call('ZSCORE', leases, worker)
local is_contested = owner
if is_first then is_contested = has_lease end
if is_contested and owner ~= process then return 'name taken' end
redis.call('HSET', process_key, unpack(ARGV, 4))
local lease_end = tonumber(time[1]) + tonumber(time[2]) / 1000000 + seconds
local added = redis.call('ZADD', leases, string.format('%.3f', lease_end), worker)
return added == 1 and 'new' or 'renewed'
