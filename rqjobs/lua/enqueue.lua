-- Accept jobs: write each and put it into its queue.
--
-- KEYS  1 rq:queues
-- ARGV  for each job: its queue, its id, "1" for the front of the queue, seconds to live ("" for ever), how many words
--       follow, and the fields and values of its hash
-- Promise: a job and its place in the queue are written in one step, all of ARGV in one script.

local at, known = 1, {}
while at <= #ARGV do
  local queue, id, words = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 4])
  local job = 'rq:job:' .. id
  redis.call('HSET', job, unpack(ARGV, at + 5, at + 4 + words))
  if ARGV[at + 3] ~= '' then redis.call('EXPIRE', job, ARGV[at + 3]) end
  redis.call(ARGV[at + 2] == '1' and 'LPUSH' or 'RPUSH', 'rq:queue:' .. queue, id)
  if not known[queue] then redis.call('SADD', KEYS[1], 'rq:queue:' .. queue) end
  known[queue] = true
  at = at + 5 + words
end
