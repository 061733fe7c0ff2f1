-- Add the minutes that are over to the counts of the last day.
--
-- KEYS  1 rqjobs:counts:day
-- ARGV  1 number of minutes to look at in this call; more would hold up other clients
--       2 number of minutes to keep   3 for which the counts of a single minute are kept
-- Promise: a minute's total is written and never added to, so calls that overlap or are repeated
-- change nothing. A minute without events has no field. The script looks at each minute once, and
-- after a time without calls at all minutes that are kept.
-- Returns the number of minutes that are left for another call.

local day, max_minutes = KEYS[1], tonumber(ARGV[1])
local minutes_kept, single_kept = tonumber(ARGV[2]), tonumber(ARGV[3])
local this_minute = math.floor(redis_time() / 60)
local last = tonumber(redis.call('HGET', day, 'last') or '')
if not last or last > this_minute or last < this_minute - single_kept then
  last = this_minute - single_kept  -- the first call, or Redis's clock has jumped
end
local up_to = math.min(this_minute - 1, last + max_minutes)
if up_to <= last then return 0 end

-- The counts of all queues by kind, "<kind> <number> …"; nil if there are none.
local function total(minute)
  local numbers, kinds = {}, {}
  local counts = redis.pcall('HGETALL', 'rqjobs:counts:' .. minute)
  for i = 1, #counts, 2 do  -- an error has no elements
    local kind, number = string.match(counts[i], '^(%l+):'), tonumber(counts[i + 1])
    if kind and number then
      if not numbers[kind] then kinds[#kinds + 1] = kind end
      numbers[kind] = (numbers[kind] or 0) + number
    end
  end
  for i, kind in ipairs(kinds) do kinds[i] = kind .. string.format(' %.0f', numbers[kind]) end
  return kinds[1] and table.concat(kinds, ' ')
end

for minute = last + 1, up_to do
  local counted = total(minute)
  if counted then redis.call('HSET', day, minute, counted) end
end
redis.call('HSET', day, 'last', up_to)
if redis.call('HLEN', day) > minutes_kept then
  for _, minute in ipairs(redis.call('HKEYS', day)) do
    local number = tonumber(minute)
    if minute ~= 'last' and (not number or number <= this_minute - minutes_kept
        or number > this_minute) then
      redis.call('HDEL', day, minute)
    end
  end
end
return this_minute - 1 - up_to
