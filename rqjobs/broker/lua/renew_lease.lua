-- Renew a worker's lease, and write where the worker lives.
--
-- KEYS  1 rqjobs:leases   2 rqjobs:process:<name>
-- ARGV  1 worker's name   2 lease, seconds   3 "1" for the first beat   4-5 "process" and which process it is
--       then more fields and values of where it lives
-- Promise: a name belongs to one process as long as that process's lease lasts.
-- Returns 1 if the worker had no lease, 0 if it had one, -1 if the name belongs to another process.

local time, owner = redis.call('TIME'), redis.call('HGET', KEYS[2], 'process')
local first, leased = ARGV[3] == '1', redis.call('ZSCORE', KEYS[1], ARGV[1])
if (first and leased or not first and owner) and owner ~= ARGV[5] then return -1 end
redis.call('HSET', KEYS[2], unpack(ARGV, 4))
return redis.call('ZADD', KEYS[1], string.format('%.3f', time[1] + time[2] / 1000000 + ARGV[2]), ARGV[1])
