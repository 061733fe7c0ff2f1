-- Record the outcome of a job, and let go of it: all of these writes, or none.
--
-- KEYS  1 rqjobs:claims:<me>
-- ARGV  1 job id   2 queue   3 token   then the writes: the number of a command's words, its words, and so on
-- Promise: the writes are applied if and only if the job still carries this token; the claim is dropped in the same
-- step. Asked again with the token that settled the job, it says so and does nothing. A job that was canceled while
-- it ran stays canceled.
-- Returns "settled", "already" (by this token), "canceled", "gone" (the job was deleted), or "refused" (the claim was
-- taken back, the job is somebody else's now).

local id, queue, token = ARGV[1], ARGV[2], ARGV[3]
local job = 'rq:job:' .. id
local reply, canceled = refusal(KEYS[1], queue, id, token)
if reply then return reply end

redis.call('HSET', job, 'rqjobs_settled', token, 'rqjobs_token', '')
if not canceled then
  local at = 4
  while at <= #ARGV do
    local words = tonumber(ARGV[at])
    local answer = redis.pcall(unpack(ARGV, at + 1, at + words))
    if type(answer) == 'table' and answer.err then  -- a key of the wrong type; the job is still the caller's to settle
      redis.call('HSET', job, 'rqjobs_token', token)
      return answer
    end
    at = at + words + 1
  end
end
drop(KEYS[1], queue, id, token)
return canceled and 'canceled' or 'settled'
