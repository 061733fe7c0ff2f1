-- Count the members of sorted sets.
--
-- ARGV  1 the beginning of their keys   then the rest of each key
-- Promise: nothing is written; a key of the wrong type counts as empty.
-- Returns the sum.

local prefix, sum = ARGV[1], 0
for i = 2, #ARGV do
  local number = redis.pcall('ZCARD', prefix .. ARGV[i])
  if type(number) == 'number' then sum = sum + number end
end
return sum
