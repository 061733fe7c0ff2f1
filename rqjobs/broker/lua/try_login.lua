-- Count an attempt to log in before its password is checked, or refuse the attempt.
--
-- KEYS  pairs of a counter and a pause
-- ARGV  1 seconds that counters live
--       then for each pair: number of free attempts; longest pause, seconds
-- Promise: of any number of simultaneous attempts only the free ones pass. A Redis without free
-- memory accepts the first write (EXPIRE) and therefore the others, so an administrator can log in
-- and free memory.
-- Returns 0, or the milliseconds left of a pause.

local counter_seconds = ARGV[1]
for i = 1, #KEYS, 2 do
  local pause, max_seconds = KEYS[i + 1], tonumber(ARGV[i + 2])
  local left = redis.call('PTTL', pause)
  if left > 0 and left <= max_seconds * 1000 then return left end  -- a longer one is foreign data
end
for i = 1, #KEYS, 2 do
  local counter, pause = KEYS[i], KEYS[i + 1]
  local free_attempts, max_seconds = tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  redis.call('EXPIRE', counter, counter_seconds)
  local count = redis.pcall('INCR', counter)
  if type(count) ~= 'number' then  -- the key holds foreign data
    redis.call('SET', counter, 1)
    count = 1
  end
  redis.call('EXPIRE', counter, counter_seconds)
  local excess = count - free_attempts
  if excess >= 0 then
    local seconds = math.min(2 ^ math.min(excess, 20), max_seconds)
    redis.call('SET', pause, 1, 'EX', seconds)
  end
end
return 0
