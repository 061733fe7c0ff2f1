-- Find out whether a deferred job waits for one that has ended, so that it can never run as things
-- are. The jobs that it depends on, those that these depend on, and so on, are looked at.
--
-- KEYS  none
-- ARGV  1 maximum number of deferred jobs to look at   then the ids to begin with
-- Promise: nothing is changed. A job that waits for its limit, or for a paused function, waits for
-- no other job. A deleted job counts as finished, as in RQ, unless no other can enqueue the job
-- that waits for it.
-- Returns {"blocked", the ended job, its status or "gone"}; {"free", up to 100 jobs that wait or run
-- now}; or {"more", the ids with which the next call goes on}.

local max_jobs, max_running = tonumber(ARGV[1]), 100
local ids, is_known, running = {}, {}, {}

local function add(id)
  if not is_known[id] then
    is_known[id] = true
    ids[#ids + 1] = id
  end
end

-- The job because of which a deferred one can never run, and its state. `goes_on`: it belongs to a
-- part of a flow that goes on, so the next sweep enqueues it.
local function blocker_of(id, failures_allowed, goes_on)
  local gone, waits
  for _, parent in ipairs(set_members('rq:job::' .. id .. ':dependencies')) do
    local status = (read_job(parent, 'status') or {})[1]
    if is_active(status) then
      waits = true
      if #running < max_running then running[#running + 1] = parent end
    elseif status == 'deferred' then
      waits = true
      add(parent)
    elseif not status then
      gone = parent
    elseif not has_ended(parent, failures_allowed) then
      return parent, status
    end
  end
  if gone and not waits and not goes_on and redis.call('EXISTS', 'rqjobs:ended-parents') == 0 then
    return gone, 'gone'
  end
end

for i = 2, #ARGV do add(ARGV[i]) end
local looked = 0
while looked < #ids do
  if looked == max_jobs then
    local rest = {'more'}
    for i = looked + 1, math.min(#ids, looked + 5000) do rest[#rest + 1] = ids[i] end
    return rest
  end
  looked = looked + 1
  local fields = read_job(ids[looked], 'status', 'rqjobs_waits_for', 'rqjobs_paused',
    'allow_dependency_failures', 'rqjobs_flow')
  if fields and fields[1] == 'deferred' and not fields[2] and not fields[3] then
    local may_fail = fields[4] == '1'
    local blocker, state = blocker_of(ids[looked], may_fail, may_fail and fields[5])
    if blocker then return {'blocked', blocker, state} end
  end
end
table.insert(running, 1, 'free')
return running
