-- Find keys under which something of the wrong type stands, and set them aside.
--
-- ARGV  1 "1" to set them aside, "" only to tell   2 how many kinds   then of each kind: what its key begins with, what
--       that ends with, the type   then the names that stand in between
-- Promise: nothing is deleted that is of the right type; what is set aside stands under rqjobs:odd:<key>.
-- Returns {key, what it is, what it should be} of each.

local aside, kinds, odd = ARGV[1] == '1', tonumber(ARGV[2]), {}
for i = 3 + 3 * kinds, #ARGV do
  for at = 3, 3 * kinds, 3 do
    local key = ARGV[at] .. ARGV[i] .. ARGV[at + 1]
    local found = redis.call('TYPE', key).ok
    if found ~= 'none' and found ~= ARGV[at + 2] then
      odd[#odd + 1] = {key, found, ARGV[at + 2]}
      if aside then redis.call('RENAME', key, 'rqjobs:odd:' .. key) end
    end
  end
end
return odd
