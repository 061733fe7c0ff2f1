-- Read the states of some jobs of a flow, what they wait for, and those that are drawn.
--
-- KEYS  1 rqjobs:flow:<id>   2 rqjobs:flow-jobs:<id>
-- ARGV  1 index of the first job   2 maximum number of jobs   3 maximum number of entries
--       4 maximum number of drawn jobs of an entry   5 index of a job that is drawn in any case, or -1
-- Promise: nothing is written. A key of the wrong type counts as empty.
-- Returns {a letter for each job, entries, drawn jobs}. An entry {index, id, parents, id of the last,
-- mark} stands for the jobs from this one on that wait for the same ones. `parents` is JSON as RQ
-- writes it; of many parents it has the first and the last one. It is nil if the first job's record is
-- gone. `mark` is "gone" if that of any is gone; "rest" for all jobs after the maximum number of
-- entries; else "". A drawn job is {index, id, description}: the first ones of each entry, and the
-- first ones that have failed or run.
-- Letters: f finished, x failed, y failed but the jobs behind it run, s stopped, c canceled,
-- q queued, d deferred, t scheduled (a time), r running, g gone, o another.

local flow, ids_key = KEYS[1], KEYS[2]
local start, max_jobs, max_entries = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local max_drawn, own = tonumber(ARGV[4]), tonumber(ARGV[5])
local MAX_PARENTS_BYTES = 2048
local MAX_NOTABLE = 24
local LETTERS = {finished = 'f', failed = 'x', stopped = 's', canceled = 'c', queued = 'q',
  deferred = 'd', scheduled = 't', started = 'r'}
local NOTABLE = {x = 0, y = 0, s = 0, r = 0}

local function letter_of(id, status)
  if status == '' then return redis.pcall('HEXISTS', flow, id) == 1 and 'f' or 'g' end
  if status ~= 'failed' then return LETTERS[status] or 'o' end
  local place = (read_job(id, 'rqjobs_flow') or {})[1]
  return place and string.match(place, ' continue$') and 'y' or 'x'
end

local function shorten(parents)
  if #parents <= MAX_PARENTS_BYTES then return parents end
  local first, last = string.match(parents, '^%[("[^"]*").*("[^"]*")%]$')
  return first and '[' .. first .. ', ' .. last .. ']' or ''
end

local ids = redis.pcall('LRANGE', ids_key, start, start + max_jobs - 1)
if ids.err then ids = {} end
local letters, entries, drawn, last_parents, in_entry = {}, {}, {}, nil, 0
for i, id in ipairs(ids) do
  local status = redis.pcall('HGET', 'rq:job:' .. id, 'status')
  if type(status) ~= 'string' then status = '' end
  local parents, is_gone = last_parents, status == ''
  if #entries < max_entries and not is_gone then
    parents = redis.pcall('HGET', 'rq:job:' .. id, 'dependency_ids')
    if type(parents) ~= 'string' then parents = '' end
  end
  local letter = letter_of(id, status)
  letters[i] = letter
  if #entries == max_entries then
    in_entry = 0
    entries[#entries + 1] = {start + i - 1, id, false, id, 'rest'}
  elseif #entries < max_entries and (#entries == 0 or parents ~= last_parents or letter == 'g') then
    in_entry = 0
    entries[#entries + 1] = {start + i - 1, id, not is_gone and shorten(parents), id, ''}
    if not is_gone then last_parents = parents end
  end
  local entry = entries[#entries]
  entry[4] = id
  if is_gone and entry[5] == '' then entry[5] = 'gone' end
  in_entry = in_entry + 1
  local is_notable = NOTABLE[letter] and NOTABLE[letter] < MAX_NOTABLE
  if is_notable then NOTABLE[letter] = NOTABLE[letter] + 1 end
  local is_early = in_entry <= max_drawn and #drawn < max_entries
  if is_notable and max_drawn > 0 or is_early or start + i - 1 == own then
    local description = (read_job(id, 'description') or {})[1] or ''
    drawn[#drawn + 1] = {start + i - 1, id, string.sub(description, 1, 400)}
  end
end
return {table.concat(letters), entries, drawn}
