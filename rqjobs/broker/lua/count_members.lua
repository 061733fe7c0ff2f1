-- Count the members of sorted sets.
--
-- ARGV  1 the beginning of their keys   2 "names" to learn which are not empty, or ""
--       then the rest of each key
-- Promise: nothing is written; a key of the wrong type counts as empty.
-- Returns the sum; then, if asked for, the rest of the key of each that is not empty.

local prefix, wants_names, reply = ARGV[1], ARGV[2] == 'names', {0}
for i = 3, #ARGV do
  local number = redis.pcall('ZCARD', prefix .. ARGV[i])
  if type(number) == 'number' and number > 0 then
    reply[1] = reply[1] + number
    if wants_names then reply[#reply + 1] = ARGV[i] end
  end
end
return reply
