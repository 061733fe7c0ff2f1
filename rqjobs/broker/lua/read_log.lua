-- Read the log of a job: some entries of its stream.
--
-- KEYS  1 rqjobs:log:<id>
-- ARGV  1 the id after which to begin, "0-0" for all   2 maximum number of entries
--       3 maximum number of bytes
-- Promise: the reply is no longer than ARGV 3. A longer entry is left out; none of ours is.
-- Returns "1" if there are more entries, else "0"; the newest id of the log, "0-0" for none; the id
-- of the last entry that was looked at; and the entries, as XRANGE gives them. A key of the wrong
-- type has none.

local log, last, max_entries, bytes_left = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local max_bytes, entries = bytes_left, {}

local function size_of(words)
  local bytes = 0
  for _, word in ipairs(words) do bytes = bytes + #word end
  return bytes
end

local newest = redis.pcall('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
newest = newest and newest[1] or '0-0'
for _ = 1, max_entries do
  local entry = redis.pcall('XRANGE', log, '(' .. last, '+', 'COUNT', 1)[1]
  if not entry then return {'0', newest, last, entries} end
  local bytes = size_of(entry[2])
  if bytes <= max_bytes then
    if bytes > bytes_left then return {'1', newest, last, entries} end
    bytes_left = bytes_left - bytes
    entries[#entries + 1] = entry
  end
  last = entry[1]
end
return {'1', newest, last, entries}
