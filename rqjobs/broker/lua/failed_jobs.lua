-- List failed jobs of a queue, the oldest first, or its stopped jobs, which RQ keeps among the failed ones.
--
-- ARGV  1 queue   2 maximum number of jobs, -1 for all
--       3 "failed"; or "stopped": all stopped jobs, with score 0
-- Promise: nothing is written; a key of the wrong type counts as empty.
-- Returns id, score, id, score, …

local queue, max_jobs, which = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local stopped, reply = stopped_jobs(queue), {}

local function add(id, score)
  reply[#reply + 1] = id
  reply[#reply + 1] = score
end

if which == 'stopped' then
  for _, id in ipairs(stopped) do add(id, '0') end
  return reply
end
if max_jobs == 0 then return reply end
local is_stopped = {}
for _, id in ipairs(stopped) do is_stopped[id] = true end
local last = max_jobs < 0 and -1 or max_jobs + #stopped - 1
local entries = redis.pcall('ZRANGE', 'rq:failed:' .. queue, 0, last, 'WITHSCORES')
for i = 1, #entries, 2 do
  local is_full = max_jobs >= 0 and #reply >= 2 * max_jobs
  if not is_stopped[entries[i]] and not is_full then add(entries[i], entries[i + 1]) end
end
return reply
