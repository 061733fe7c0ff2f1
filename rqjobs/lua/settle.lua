-- Record the outcome of a job, and let go of it: all of these writes, or none.
--
-- KEYS  1 job hash   2 rqjobs:claims:<me>   3 wip   4 the job's dependents
-- ARGV  1 job id   2 token   3 "1" if the writes are right only while nothing depends on the job
--       then the writes: the number of a command's words, its words, and so on
-- Promise: the writes are applied if and only if the job still carries this token; the claim is dropped in the same
-- step. Asked again with the token that settled the job, it says so and does nothing. A job that was canceled while
-- it ran stays canceled.
-- Returns "settled", "already" (by this token), "canceled", "gone" (the job was deleted), "refused" (the claim was
-- taken back, the job is somebody else's now), or "dependents" (nothing was done, see ARGV 3).

local job, id, token = KEYS[1], ARGV[1], ARGV[2]
local fields = read(id, 'rqjobs_token', 'rqjobs_settled', 'status')
if not fields or (not fields[1] and not fields[3]) then
  redis.call('LREM', KEYS[2], 1, id)
  redis.call('ZREM', KEYS[3], id .. ':' .. token)
  return 'gone'
end
if fields[1] ~= token then return fields[2] == token and 'already' or 'refused' end
local canceled = fields[3] == 'canceled'
if ARGV[3] == '1' and not canceled and redis.call('EXISTS', KEYS[4]) == 1 then return 'dependents' end

redis.call('HSET', job, 'rqjobs_settled', token, 'rqjobs_token', '')
if not canceled then
  local at = 4
  while at <= #ARGV do
    local words = tonumber(ARGV[at])
    local reply = redis.pcall(unpack(ARGV, at + 1, at + words))
    if type(reply) == 'table' and reply.err then  -- a key of the wrong type; the job is still the caller's to settle
      redis.call('HSET', job, 'rqjobs_token', token)
      return reply
    end
    at = at + words + 1
  end
end
redis.call('LREM', KEYS[2], 1, id)
redis.call('ZREM', KEYS[3], id .. ':' .. token)
return canceled and 'canceled' or 'settled'
