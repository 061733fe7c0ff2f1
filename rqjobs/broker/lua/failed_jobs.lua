-- List failed jobs of a queue. RQ keeps those that somebody has stopped in the same place; they are left out.
--
-- ARGV  1 queue   2 how many at most, -1 for all   3 "newest" or "oldest" first; or "stopped": those that are left out
-- Promise: nothing is written; a key of the wrong type counts as empty.
-- Returns id, score, id, score, …

local stopped, most, found = {}, tonumber(ARGV[2]), {}
for _, id in ipairs(stopped_in(ARGV[1])) do
  stopped[id] = true
  if most >= 0 then most = most + 1 end
end
if ARGV[3] == 'stopped' then
  for i, id in ipairs(stopped_in(ARGV[1])) do found[2 * i - 1], found[2 * i] = id, '0' end
  return found
end
local command = ARGV[3] == 'newest' and 'ZREVRANGE' or 'ZRANGE'
local all = most == 0 and {} or redis.pcall(command, 'rq:failed:' .. ARGV[1], 0, most < 0 and -1 or most - 1, 'WITHSCORES')
for i = 1, #all, 2 do
  if not stopped[all[i]] and (tonumber(ARGV[2]) < 0 or #found < 2 * tonumber(ARGV[2])) then
    found[#found + 1] = all[i]
    found[#found + 1] = all[i + 1]
  end
end
return found
