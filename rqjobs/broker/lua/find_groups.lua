-- Find groups of failed jobs for one page of the inbox, the one that failed last first.
--
-- KEYS  1 rqjobs:failure-groups
-- ARGV  1 the text that the function, error or message contains, in lower case; "" for any
--       2 "1" for ignored groups, "" for the others   3 the score and 4 the id of the last group of
--       the page before, both "" for the first page   5 maximum number of groups
--       6 maximum number of groups to look at
-- Promise: nothing is written. A group counts as ignored until it fails again. Letters other than
-- those of ASCII are found in their own case only.
-- Returns the number of groups that are not ignored, of ignored ones, and of those that match on
-- all pages; "1" if more follow, else ""; then id, score, id, score, …

local text, wants_ignored, last = ARGV[1], ARGV[2] == '1', tonumber(ARGV[3])
local last_id, max_groups, max_looked = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local entries = redis.pcall('ZREVRANGE', KEYS[1], 0, max_looked - 1, 'WITHSCORES')
local watched, ignored, matched, page, more = 0, 0, 0, {}, ''

local function is_ignored(field, total)
  local before = string.match(field or '', '^(%d+) ')
  return before and tonumber(total or '') == tonumber(before)
end

local function matches(fields)
  if text == '' then return true end
  for i = 1, 3 do
    if fields[i] and string.find(string.lower(fields[i]), text, 1, true) then return true end
  end
end

local function is_behind_last(score, id)
  return not last or score < last or score == last and id < last_id
end

for i = 1, #entries, 2 do
  local id, score = entries[i], entries[i + 1]
  local fields = redis.pcall('HMGET', 'rqjobs:failure-group:' .. id, 'function', 'error', 'message',
    'ignored', 'total')
  if not fields.err and (fields[1] or fields[2] or fields[5]) then
    local of_group = is_ignored(fields[4], fields[5]) or false
    if of_group then ignored = ignored + 1 else watched = watched + 1 end
    if of_group == wants_ignored and matches(fields) then
      matched = matched + 1
      if not is_behind_last(tonumber(score), id) then
        -- on a page before
      elseif #page < 2 * max_groups then
        page[#page + 1] = id
        page[#page + 1] = score
      else
        more = '1'
      end
    end
  end
end
return {watched, ignored, matched, more, unpack(page)}
