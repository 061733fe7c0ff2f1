-- Look at some deferred jobs of a queue: forget ids whose job is gone (its `ttl` has passed, or a
-- program has deleted its hash), enqueue jobs of flows that go on although a job before them was
-- canceled or deleted, and find the jobs that wait for a limit or for a paused function.
--
-- KEYS  1 rq:deferred:<queue>
-- ARGV  1 cursor of the last call, "0" at first   2 about how many ids to look at
--       3 seconds for which an id without a job is kept   4 now, as RQ writes it
--       5 RQ's default timeout, seconds
-- Promise: an id whose job exists stays, unless the job is enqueued.
-- Returns the next cursor ("0": no more); the ids that are forgotten; and for each job that waits:
-- {id, since when, the field that names what it waits for, and that name}.

local deferred, keep_seconds, iso, default_timeout = KEYS[1], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local oldest = redis_time() - keep_seconds
local scan = redis.pcall('ZSCAN', deferred, ARGV[1], 'COUNT', ARGV[2])
if scan.err then return {'0', {}, {}} end
local forgotten, waiting = {}, {}
for i = 1, #scan[2], 2 do
  local id, since = scan[2][i], scan[2][i + 1]
  local fields = read_job(id, 'status', 'rqjobs_waits_for', 'rqjobs_paused', 'rqjobs_flow',
    'allow_dependency_failures') or {}
  if fields[1] == 'deferred' and (fields[2] or fields[3]) then
    local field = fields[2] and 'rqjobs_waits_for' or 'rqjobs_paused'
    waiting[#waiting + 1] = {id, since, field, fields[2] or fields[3]}
  elseif fields[1] == 'deferred' and fields[4] and fields[5] == '1' then
    -- The first jobs of a flow, which have no parents, wait for its release.
    if redis.call('TYPE', 'rq:job::' .. id .. ':dependencies').ok == 'set' then
      enqueue_dependent(id, '', '', iso, default_timeout)
    end
  elseif tonumber(since) < oldest and redis.call('EXISTS', 'rq:job:' .. id) == 0 then
    redis.call('ZREM', deferred, id)
    forgotten[#forgotten + 1] = id
  end
end
return {scan[1], forgotten, waiting}
