-- Read what the page of a job shows, at one instant.
--
-- ARGV  1 id of the job   2 maximum number of its runs   3 maximum bytes of one value of a run
--       4 maximum number of parents, and of children   5 maximum number of parents that are checked
-- Promise: nothing is written. A key of the wrong type counts as empty.
-- Returns {fields of the hash or an error, runs, chunks of the log, due time, place in line,
-- whether its schedule exists, parents, number of children, children, parents that block it, number
-- of checked parents, workers that listen to its queue}. A run is {id, fields}, the newest first. A
-- parent or a child is {id, status, why it ended, description}; the status of one that is gone is
-- "". One that blocks is {id, status, why it ended}.

local id, max_runs, max_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local max_family, max_checked = tonumber(ARGV[4]), tonumber(ARGV[5])
local MAX_LINE = 10000  -- entries of a queue, or of a line, in which the job is searched
local MAX_CHUNKS, MAX_LOG_BYTES = 5000, 256 * 1024  -- ours have fewer
local MAX_PARENTS_BYTES = 1024 * 1024
local job = 'rq:job:' .. id
local hash = redis.pcall('HGETALL', job)
if hash.err then return {hash} end
local fields = {}
for i = 1, #hash, 2 do fields[hash[i]] = hash[i + 1] end
local status, queue = fields.status or '', fields.origin or ''

local function runs()
  local found = {}
  for i, entry in ipairs(redis.pcall('XREVRANGE', 'rq:results:' .. id, '+', '-', 'COUNT', max_runs)) do
    local words = entry[2]
    for j = 2, #words, 2 do
      if #words[j] > max_bytes then words[j] = string.sub(words[j], 1, max_bytes) end
    end
    found[i] = entry
  end
  return found
end

local function log()
  if not fields.rqjobs_log then return {} end
  return (log_entries('rqjobs:log:' .. id, '0-0', MAX_CHUNKS, MAX_LOG_BYTES))
end

local function number_in(key)
  local place = redis.pcall('LPOS', key, id, 'MAXLEN', MAX_LINE)
  return type(place) == 'number' and place + 1 or 0
end

local function place_in_line()
  if fields.rqjobs_waits_for then return number_in('rqjobs:waiting:' .. fields.rqjobs_waits_for) end
  return status == 'queued' and number_in('rq:queue:' .. queue) or 0
end

local function relative(other)
  local found = read_job(other, 'status', 'rqjobs_ending', 'description') or {}
  return {other, found[1] or '', found[2] or '', string.sub(found[3] or '', 1, 400)}
end

local function parents()
  local found, text = {}, fields.dependency_ids or ''
  if #text > MAX_PARENTS_BYTES then return found end
  local is_read, ids = pcall(cjson.decode, text)
  if not is_read or type(ids) ~= 'table' then return found end
  for i = 1, math.min(#ids, max_family) do
    if type(ids[i]) == 'string' then found[#found + 1] = relative(ids[i]) end
  end
  return found
end

local function children()
  local key, found = job .. ':dependents', {}
  local number = redis.pcall('SCARD', key)
  if type(number) ~= 'number' or number == 0 then return 0, found end
  local cursor = '0'
  repeat
    local reply = redis.call('SSCAN', key, cursor, 'COUNT', max_family)
    cursor = reply[1]
    for _, child in ipairs(reply[2]) do
      if #found < max_family then found[#found + 1] = relative(child) end
    end
  until cursor == '0' or #found >= max_family
  return number, found
end

-- The parents that do not let the job run, and the number of those that were looked at. The same
-- rule is in maintenance/audit.py.
local function blocking()
  if status ~= 'deferred' or fields.rqjobs_waits_for or fields.rqjobs_paused then return {}, 0 end
  local may_fail = fields.allow_dependency_failures == '1'
  local found, is_unfinished, all_over, first, checked = {}, false, true, nil, 0
  for _, parent in ipairs(set_members('rq:job::' .. id .. ':dependencies')) do
    if checked == max_checked then return {}, checked end
    checked, first = checked + 1, first or parent
    local state = redis.pcall('HGET', 'rq:job:' .. parent, 'status')
    if type(state) ~= 'string' or state == '' then state = 'gone' end
    if state ~= 'finished' and not (state == 'failed' and may_fail) then
      all_over = false
      if state ~= 'gone' then is_unfinished = true end
      if state == 'failed' or state == 'stopped' or state == 'canceled' or state == 'gone' then
        found[#found + 1] = {parent, state}
      end
    elseif state == 'failed' then
      is_unfinished = true
    end
  end
  local blocked = {}
  for _, one in ipairs(found) do
    if #blocked < max_family and not (one[2] == 'gone' and is_unfinished) then
      one[3] = (read_job(one[1], 'rqjobs_ending') or {})[1] or ''
      blocked[#blocked + 1] = one
    end
  end
  if first and all_over and #set_members('rqjobs:ended-parents') == 0 then
    blocked[1] = {first, 'over', ''}
  end
  return blocked, checked
end

local number_of_children, some_children = children()
local blocked, checked = blocking()
local due = redis.pcall('ZSCORE', 'rq:scheduled:' .. queue, id)
local schedule = fields.rqjobs_schedule or ''
local listeners = redis.pcall('SCARD', 'rq:workers:' .. queue)
return {
  hash, runs(), log(), type(due) == 'string' and due or '', place_in_line(),
  schedule ~= '' and redis.call('EXISTS', 'rqjobs:schedule:' .. schedule) or 0,
  parents(), number_of_children, some_children, blocked, checked,
  type(listeners) == 'number' and listeners or 0,
}
