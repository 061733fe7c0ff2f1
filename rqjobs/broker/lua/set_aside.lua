-- Find keys of the wrong type, and rename them out of the way.
--
-- ARGV  1 "1" to rename them, "" only to report them   2 number of kinds of keys
--       then for each kind: the beginning of its key, the end of its key, its type
--       then the names that stand between beginning and end
-- Promise: keys of the right type are not touched. A renamed key is kept under rqjobs:odd:<key>.
-- Returns {key, type found, right type} of each.

local renames, kinds = ARGV[1] == '1', tonumber(ARGV[2])
local FIRST_KIND, reply = 3, {}
local first_name = FIRST_KIND + 3 * kinds

local function check(key, right)
  local found = redis.call('TYPE', key).ok
  if found == 'none' or found == right then return end
  reply[#reply + 1] = {key, found, right}
  if renames then redis.call('RENAME', key, 'rqjobs:odd:' .. key) end
end

for i = first_name, #ARGV do
  for at = FIRST_KIND, first_name - 3, 3 do
    check(ARGV[at] .. ARGV[i] .. ARGV[at + 1], ARGV[at + 2])
  end
end
return reply
