-- Count a try to log in before its password is checked, or refuse the try.
--
-- KEYS  pairs of a counter and a pause
-- ARGV  1 how long counters live   then for each pair how many tries are free, and its longest pause; seconds
-- Promise: of a thousand tries at once no more than the free ones pass. The first write is one that a full Redis lets
--       through; after it the others are let through too, so that who cleans up can log in.
-- Returns 0, or the milliseconds that are left of a pause.

for i = 1, #KEYS, 2 do
  local left = redis.call('PTTL', KEYS[i + 1])
  if left > 0 and left <= ARGV[i + 2] * 1000 then return left end  -- a longer one somebody else wrote
end
for i = 1, #KEYS, 2 do
  redis.call('EXPIRE', KEYS[i], ARGV[1])
  local count = redis.pcall('INCR', KEYS[i])
  if type(count) ~= 'number' then
    redis.call('SET', KEYS[i], 1)
    count = 1
  end
  local over = count - ARGV[i + 1]
  redis.call('EXPIRE', KEYS[i], ARGV[1])
  if over >= 0 then redis.call('SET', KEYS[i + 1], 1, 'EX', math.min(2 ^ math.min(over, 20), ARGV[i + 2])) end
end
return 0
