-- Find out whether a deferred job waits for one that has ended, so that it can never run as things
-- are. The jobs that it depends on, those that these depend on, and so on, are looked at.
--
-- KEYS  none
-- ARGV  1 maximum number of jobs to look at, about   then the ids to begin with, or words of "more"
-- Promise: nothing is changed. A job that waits for its limit, or for a paused function, waits for
-- no other job. A deleted job counts as finished, as in RQ, unless no other can enqueue the job
-- that waits for it.
-- Returns {"blocked", the ended job, its status or "gone"}; {"free", up to 100 jobs that wait or run
-- now}; or {"more", the words with which the next call goes on}.

local max_jobs, max_running = tonumber(ARGV[1]), 100
local words, is_known, running, looked = {}, {}, {}, 0

local function add(word)
  if not is_known[word] then
    is_known[word] = true
    words[#words + 1] = word
  end
end

-- Look at a parent of a deferred job. Returns its state if it is in the way; else nil, and whether
-- it has not ended.
local function look_at(parent, may_fail)
  local status = (read_job(parent, 'status') or {})[1]
  looked = looked + 1
  if is_active(status) then
    if #running < max_running then running[#running + 1] = parent end
    return nil, true
  elseif status == 'deferred' then
    add(parent)
    return nil, true
  elseif status and not has_ended(parent, may_fail) then
    return status
  end
  return nil, false, not status
end

-- The job because of which a deferred one can never run, and its state. Of many parents a part is
-- looked at: those of `cursor`. `goes_on`: the job belongs to a part of a flow that goes on, so the
-- next sweep enqueues it.
local function blocker_of(id, cursor, may_fail, goes_on)
  local dependencies, gone, waits = 'rq:job::' .. id .. ':dependencies', nil, false
  local scan = redis.pcall('SSCAN', dependencies, cursor, 'COUNT', 500)
  if scan.err then return nil end
  for _, parent in ipairs(scan[2]) do
    local state, is_waiting, is_gone = look_at(parent, may_fail)
    if state then return parent, state end
    waits = waits or is_waiting
    if is_gone then gone = parent end
  end
  if scan[1] ~= '0' then add(id .. ' ' .. scan[1]) end
  local are_all = cursor == '0' and scan[1] == '0'
  if gone and are_all and not waits and not goes_on
      and redis.call('EXISTS', 'rqjobs:ended-parents') == 0 then
    return gone, 'gone'
  end
end

for i = 2, #ARGV do add(ARGV[i]) end
local at = 0
while at < #words do
  if looked >= max_jobs then
    local rest = {'more'}
    for i = at + 1, math.min(#words, at + 5000) do rest[#rest + 1] = words[i] end
    return rest
  end
  at, looked = at + 1, looked + 1
  local id, cursor = string.match(words[at], '^(%S+) ?(%d*)$')
  local fields = id and read_job(id, 'status', 'rqjobs_waits_for', 'rqjobs_paused',
    'allow_dependency_failures', 'rqjobs_flow')
  if fields and fields[1] == 'deferred' and not fields[2] and not fields[3] then
    local may_fail = fields[4] == '1'
    local blocker, state = blocker_of(id, cursor == '' and '0' or cursor, may_fail,
      may_fail and fields[5])
    if blocker then return {'blocked', blocker, state} end
  end
end
table.insert(running, 1, 'free')
return running
