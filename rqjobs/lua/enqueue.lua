-- Accept jobs: write each and put it into its queue.
--
-- KEYS  1 rq:queues
-- ARGV  for each job: its queue, its id, "1" for the front of the queue, seconds to live ("" for ever), "1" if there
--       was never a job of this id, how many words follow, and the fields and values of its hash
-- Promise: a job and its place in the queue are written in one step, all of ARGV in one script. If a job of this id runs
-- now, its worker has lost it: that run's outcome will be refused, and this one counts. An old time to live is forgotten.

local at, known = 1, {}
while at <= #ARGV do
  local queue, id, words = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 5])
  local job = 'rq:job:' .. id
  local before = ARGV[at + 4] ~= '1' and read(id, 'worker_name', 'rqjobs_token', 'origin')
  redis.call('HSET', job, unpack(ARGV, at + 6, at + 5 + words))
  if before then
    redis.call('PERSIST', job)
    if before[1] and before[2] then
      redis.call('HDEL', job, 'rqjobs_token')
      drop('rqjobs:claims:' .. before[1], before[3] or queue, id, before[2])
    end
  end
  if ARGV[at + 3] ~= '' then redis.call('EXPIRE', job, ARGV[at + 3]) end
  redis.call(ARGV[at + 2] == '1' and 'LPUSH' or 'RPUSH', 'rq:queue:' .. queue, id)
  if not known[queue] then redis.call('SADD', KEYS[1], 'rq:queue:' .. queue) end
  known[queue] = true
  at = at + 6 + words
end
