-- Search the jobs of one queue, one registry, or one list of ids, from a position on.
--
-- ARGV  1 "list", "zset" or "ids"   2 the key; "" if ids are given   3 "newest" or "oldest" first
--       4 maximum number of jobs to look at   5 maximum number of jobs to find
--       6 up to so many jobs are sorted by their moment, and more have the order of their key
--       7 "rows" or "count"   8 the status that each job must have, or "not stopped", or ""
--       9 a text in the description, the id or the arguments   10 a function, with or without its module
--       11 and 12 the first and the last moment, as RQ writes it   13 the schedule
--       14 "any", or the error: the ids of its groups, one after another with a space behind each
--       15 the queue; "" for any   16 words that the data have if the arguments have the text
--       17 the names whose values are hidden, folded   18 number of ids   then these ids
--       then the position: nothing at the beginning; or "sorted", a moment and an id; or "ranked",
--       a score and a member; or "listed", a depth, a length, a moment, and ids around the position
-- Promise: nothing is written; a key of the wrong type counts as empty. A job that stays where it
-- is is looked at once, whatever comes and goes between the calls. The moment of a job is the last
-- of its dates. An id without a job is left out in a registry of ended jobs.
-- Returns the position behind the last job that was looked at (empty if there are no more), the
-- numbers of the jobs that were looked at, of all jobs, and of the found ones; and a list with each
-- job that is found (not of a count) or that the caller must check: the position behind it, the
-- number of the jobs looked at by then, "maybe" if it must be checked, and its id, moment, score and
-- fields.

local SHORT_BYTES, LONG_BYTES = 300, 600  -- of the fields in the reply
local DATA_MAX_BYTES = 65536  -- of a job's data; longer ones are not searched
local WINDOW, MAX_UNDECIDED, MAX_RUNS = 2000, 200, 1000
local RANDOM_ID_MIN_TEXT = 4  -- characters of a text that a random id begins with
local CLOSING_BRACKET = string.byte(')')
local MAX_SORTED_AGAIN = 20000  -- jobs of a key that was sorted at the beginning, and has grown
local kind, key, order = ARGV[1], ARGV[2], ARGV[3]
local max_looked, max_found, max_sorted = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local wants, wanted_status = ARGV[7], ARGV[8]
local text, wanted_function, first, last = string.lower(ARGV[9]), ARGV[10], ARGV[11], ARGV[12]
local schedule, groups, queue = ARGV[13], ARGV[14], ARGV[15]
local words, hidden_names, number_of_ids = ARGV[16], ARGV[17], tonumber(ARGV[18])
local given_ids, position = {}, {}
for i = 19, #ARGV do
  local list = i < 19 + number_of_ids and given_ids or position
  list[#list + 1] = ARGV[i]
end
local needs_fields = text ~= '' or wanted_function ~= '' or first ~= '' or schedule ~= ''
  or groups ~= 'any' or queue ~= ''
local has_filter = needs_fields or last ~= ''
local DATES = {'ended_at', 'started_at', 'enqueued_at', 'created_at'}
local ROW_FIELDS = {'status', 'origin', 'ended_at', 'started_at', 'enqueued_at', 'created_at',
  'worker_name', 'rqjobs_schedule', 'rqjobs_failure_group', 'rqjobs_ending', 'timeout'}

-- Bytes in order. Lua's own order of texts depends on the locale of the server.
local function is_less(one, other)
  for i = 1, math.min(#one, #other) do
    local a, b = string.byte(one, i), string.byte(other, i)
    if a ~= b then return a < b end
  end
  return #one < #other
end

local function moment_of(dates)
  local latest = ''
  for _, date in ipairs(dates) do
    if date and #date <= 32 and date > latest
      and string.find(date, '^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d[.%d]*Z$') then
      latest = date
    end
  end
  return latest
end

-- The data of a job, nil if they are too long.
local function data_of(id)
  local size = redis.call('HSTRLEN', 'rq:job:' .. id, 'data')
  if size > 0 and size <= DATA_MAX_BYTES then return redis.call('HGET', 'rq:job:' .. id, 'data') end
end

-- Whether a job is of the function, "maybe" if only its packed data can tell.
local function has_function(id, description)
  local name = string.match(description or '', '^([%w_.]+)%(')
  if not name then
    local data = data_of(id)
    if not data then return false end
    name = string.match(data, '^%["([%w_.]+)"')
      or string.match(data, '^{"__rqjobs__":%["tuple",%["([%w_.]+)"')
    if not name then return 'maybe' end
  end
  return name == wanted_function or string.match(name, '[^.]*$') == wanted_function
end

local function has_error(group, status)
  if group and group ~= '' then
    return string.find(' ' .. groups, ' ' .. group .. ' ', 1, true) ~= nil
  end
  return status == 'failed' and 'maybe'
end

-- The fields that the filter needs, and the position of each in a reply.
local needed, place_of = {}, {}

local function need(...)
  for _, field in ipairs({...}) do
    if not place_of[field] then
      needed[#needed + 1] = field
      place_of[field] = #needed
    end
  end
end

if wanted_status ~= '' or groups ~= 'any' or #needed == 0 then need('status') end
if wanted_function ~= '' then need('description') end
if schedule ~= '' then need('rqjobs_schedule') end
if groups ~= 'any' then need('rqjobs_failure_group') end
if queue ~= '' then need('origin') end
if first ~= '' or last ~= '' then need(unpack(DATES)) end

local function is_in_time(fields)
  local dates = {}
  for i, date in ipairs(DATES) do dates[i] = fields[place_of[date]] end
  local moment = moment_of(dates)
  return (first == '' or moment >= first) and (last == '' or moment <= last)
end

local function has_status(status)
  if wanted_status == 'not stopped' then return status ~= 'stopped' end
  return wanted_status == '' or status == wanted_status
end

local may_be_id = not string.find(text, '[^%w_-]')

-- Whether a description may show less than is stored: a hidden value is in it.
local function may_be_masked(description)
  if hidden_names == '' then return false end
  local folded = string.gsub(string.lower(description), '[_-]', '')
  for name in string.gmatch(hidden_names, '%S+') do
    if string.find(folded, name, 1, true) then return true end
  end
  return string.find(description, '[\128-\255]') ~= nil  -- letters that Python folds
end

-- Whether the arguments may have the text, of a job whose description does not show all of them.
local function may_have_argument(id)
  local data = data_of(id)
  if not data then return false end
  if not string.find(data, '^[%[{]') then return true end  -- it is packed
  data = string.lower(data)
  for word in string.gmatch(words, '%S+') do
    if not string.find(data, word, 1, true) then return false end
  end
  return true
end

-- Any two digits are somewhere in one of nine random ids, so these match from their beginning.
local function has_id_text(id)
  local found = string.find(string.lower(id), text, 1, true)
  local is_random = #id == 36 and string.find(id, '^%x+%-%x+%-%x+%-%x+%-%x+$')
  return found and (not is_random or found == 1 and #text >= RANDOM_ID_MIN_TEXT)
end

-- Whether a job has the text: true, false or "maybe".
local function has_text(id)
  local description = redis.pcall('HGET', 'rq:job:' .. id, 'description') or ''
  if type(description) == 'table' then return false end
  if may_be_id and has_id_text(id) then return true end
  if string.find(string.lower(description), text, 1, true) then
    return not may_be_masked(description) or 'maybe'
  end
  local is_whole_call = string.byte(description, -1) == CLOSING_BRACKET
    and string.find(description, '^[%w_.]+%(') and not string.find(description, '...', 1, true)
  return not is_whole_call and may_have_argument(id) and 'maybe'
end

-- Whether the filter takes a job: true, false or "maybe". An unreadable job has no fields, and no
-- date, so no last moment excludes it.
local function takes(id)
  local answer = text == '' or has_text(id)
  if not answer then return false end
  local fields = redis.pcall('HMGET', 'rq:job:' .. id, unpack(needed))
  if fields.err then return not needs_fields end
  local description = fields[place_of.description]
  local status = place_of.status and fields[place_of.status]
  if not has_status(status) then return false end
  if queue ~= '' and fields[place_of.origin] ~= queue then return false end
  if schedule ~= '' and fields[place_of.rqjobs_schedule] ~= schedule then return false end
  if (first ~= '' or last ~= '') and not is_in_time(fields) then return false end
  if groups ~= 'any' then
    local of_group = has_error(fields[place_of.rqjobs_failure_group], status)
    if of_group ~= true then answer = of_group end
  end
  if answer and wanted_function ~= '' then
    local of_function = has_function(id, description)
    if of_function ~= true then answer = of_function end
  end
  return answer
end

local has_tokens = kind == 'zset' and string.find(key, '^rq:wip:')
-- Where a job without a record is not listed: that is its ordinary end.
local may_expire = kind == 'ids' or string.find(key, '^rq:finished:')
  or string.find(key, '^rq:canceled:')

local function id_of(member)
  return has_tokens and string.match(member, '^[^:]*') or member
end

local function is_gone(id)
  return may_expire and redis.call('EXISTS', 'rq:job:' .. id) == 0
end

local looked, found, undecided, rows = 0, 0, 0, {}

local function short(value, bytes)
  return string.sub(value or '', 1, bytes)
end

local function row(id, score)
  local fields = read_job(id, unpack(ROW_FIELDS))
  if not fields then return {id, '', score, 'unreadable'} end
  local moment = moment_of({fields[3], fields[4], fields[5], fields[6]})
  local more = read_job(id, 'description', 'rqjobs_progress')
  local reply = {id, moment, score, short(more[1], LONG_BYTES), short(more[2], LONG_BYTES)}
  for i = 1, #ROW_FIELDS do reply[#reply + 1] = short(fields[i], SHORT_BYTES) end
  local error = fields[9]
    and redis.pcall('HGET', 'rqjobs:failure-group:' .. fields[9], 'error')
  reply[#reply + 1] = type(error) == 'string' and short(error, SHORT_BYTES) or ''
  return reply
end

-- Look at one job; `place` makes the position behind it. Returns whether the search goes on.
local function look_at(member, score, place)
  looked = looked + 1
  local id = id_of(member)
  local answer = takes(id)
  if answer and not is_gone(id) then
    if answer == 'maybe' then undecided = undecided + 1 else found = found + 1 end
    if wants == 'rows' or answer == 'maybe' then
      local maybe = answer == 'maybe' and answer or ''
      rows[#rows + 1] = {place(), looked, maybe, unpack(row(id, score))}
    end
  end
  return looked < max_looked and found < max_found and undecided < MAX_UNDECIDED
end

local stop = {}  -- the position behind the last job

-- All jobs, in the order of their moments.
local function search_sorted(members)
  local entries = {}
  for i, entry in ipairs(members) do
    local fields = read_job(id_of(entry[1]), unpack(DATES)) or {}
    local moment = moment_of({fields[1] or false, fields[2] or false, fields[3] or false,
      fields[4] or false})
    entries[i] = {moment, entry[1], entry[2]}
  end
  local function comes_first(one, other)
    if order == 'oldest' then one, other = other, one end
    if one[1] ~= other[1] then return one[1] > other[1] end
    return is_less(other[2], one[2])
  end
  table.sort(entries, comes_first)
  local after = position[1] and {position[2], position[3]}
  local entry
  local function place() return {'sorted', entry[1], entry[2]} end
  for i = 1, #entries do
    entry = entries[i]
    if not after or comes_first(after, entry) then
      if not look_at(entry[2], entry[3], place) then
        if i < #entries then stop = place() end
        return
      end
    end
  end
end

-- The rank of the first member behind a score and a member.
local function rank_behind(score, member)
  local is_newest_first = order == 'newest'
  local command = is_newest_first and 'ZREVRANGE' or 'ZRANGE'
  local low
  if is_newest_first then
    low = redis.call('ZCOUNT', key, '(' .. score, '+inf')
  else
    low = redis.call('ZCOUNT', key, '-inf', '(' .. score)
  end
  local high = low + redis.call('ZCOUNT', key, score, score)
  while low < high do
    local middle = math.floor((low + high) / 2)
    local other = redis.call(command, key, middle, middle)[1]
    local is_behind
    if is_newest_first then is_behind = is_less(other, member) end
    if not is_newest_first then is_behind = is_less(member, other) end
    if is_behind then high = middle else low = middle + 1 end
  end
  return low
end

local function search_ranked()
  local command = order == 'newest' and 'ZREVRANGE' or 'ZRANGE'
  local rank = position[1] and rank_behind(position[2], position[3]) or 0
  local total, chunk = redis.call('ZCARD', key), has_filter and 1000 or max_found + 10
  local member, score
  local function place() return {'ranked', score, member} end
  while rank < total do
    local entries = redis.call(command, key, rank, rank + chunk - 1, 'WITHSCORES')
    if #entries == 0 then return end
    for i = 1, #entries, 2 do
      member, score, rank = entries[i], entries[i + 1], rank + 1
      if not look_at(member, score, place) then
        if rank < total then stop = place() end
        return
      end
    end
  end
end

-- Lists. A depth counts from the end where the search begins: the right one, the newest job.

local function ids_at(depth, number)
  if order == 'oldest' then return redis.call('LRANGE', key, depth, depth + number - 1) end
  local ids = redis.call('LRANGE', key, -depth - number, -depth - 1)
  for i = 1, math.floor(#ids / 2) do ids[i], ids[#ids + 1 - i] = ids[#ids + 1 - i], ids[i] end
  return ids
end

-- The depth behind the ids of a position, if one of them stands near a depth. Those with an odd
-- number come before the position, from the nearest one on, and the others behind it.
local function depth_near(depth, total)
  if depth > 0 and ids_at(depth - 1, 1)[1] == position[5] then return depth end
  local start = math.max(0, depth - WINDOW)
  if start >= total then return end
  local wanted, nearest = {}, nil
  for i = 5, #position do wanted[position[i]] = i end
  for i, id in ipairs(ids_at(start, 2 * WINDOW)) do
    local number = wanted[id]
    if number and (not nearest or number < nearest.number) then
      nearest = {number = number, depth = number % 2 == 1 and start + i or start + i - 1}
    end
  end
  return nearest and nearest.depth
end

-- The depth of the first job whose enqueueing is not after a moment.
local function depth_by_moment(moment, total)
  local low, high = 0, total
  while low < high do
    local middle = math.floor((low + high) / 2)
    local id = ids_at(middle, 1)[1]
    local fields = read_job(id, 'enqueued_at') or {}
    local is_behind = (fields[1] or '') < moment
    if order == 'oldest' then is_behind = (fields[1] or '') > moment end
    if is_behind then high = middle else low = middle + 1 end
  end
  return low
end

-- Where the search goes on in a list that has changed. Jobs that were pushed move the position away
-- from the right end, and jobs that were popped move it towards the left one.
local function depth_of_position(total)
  local depth, length, moment = tonumber(position[2]), tonumber(position[3]), position[4]
  if not depth or not length then return 0 end
  local found_at = depth_near(depth, total) or depth_near(depth + total - length, total)
  if found_at then return found_at end
  local by_moment = depth_by_moment(moment, total)
  return depth_near(by_moment, total) or by_moment
end

local function search_list()
  local total = redis.call('LLEN', key)
  local depth, chunk = 0, has_filter and 1000 or max_found + 10
  if position[1] then depth = depth_of_position(total) end
  local before = depth > 0 and ids_at(depth - 1, 1)[1] or nil
  local ids, index
  local function place()
    local id, earlier = ids[index], ids[index - 1] or before or ''
    local fields = read_job(id, 'enqueued_at') or {}
    return {'listed', tostring(depth), tostring(total), fields[1] or '', id, ids[index + 1] or '',
      earlier, ids[index + 2] or ''}
  end
  while depth < total do
    ids = ids_at(depth, chunk + 2)
    if #ids == 0 then return end
    for i = 1, math.min(#ids, chunk) do
      depth, index = depth + 1, i
      if not look_at(ids[i], '', place) then
        if depth < total then stop = place() end
        return
      end
    end
    before = ids[math.min(#ids, chunk)]
  end
end

local function ids_of_runs()
  local ids = {}
  for _, run in ipairs(redis.pcall('LRANGE', key, 0, MAX_RUNS - 1)) do
    ids[#ids + 1] = string.match(run, '%S*$')
  end
  return ids
end

local function with_scores(entries)
  local members = {}
  for i = 1, #entries, 2 do members[#members + 1] = {entries[i], entries[i + 1]} end
  return members
end

local total = 0
local mode = position[1]
if kind == 'ids' then
  local ids = key == '' and given_ids or ids_of_runs()
  local members = {}
  for i, id in ipairs(ids) do members[i] = {id, ''} end
  total = #members
  search_sorted(members)
elseif kind == 'zset' and redis.call('TYPE', key).ok == 'zset' then
  total = redis.call('ZCARD', key)
  if mode == 'sorted' or (not mode and total <= max_sorted) then
    local entries = redis.call('ZREVRANGE', key, 0, MAX_SORTED_AGAIN - 1, 'WITHSCORES')
    search_sorted(with_scores(entries))
  else
    search_ranked()
  end
elseif kind == 'list' and redis.call('TYPE', key).ok == 'list' then
  total = redis.call('LLEN', key)
  search_list()
end
return {stop, looked, total, found, rows}
