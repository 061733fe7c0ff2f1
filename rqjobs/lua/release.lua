-- Put claimed jobs that have not begun back at the front of their queues, in their order.
--
-- KEYS  1 rqjobs:claims:<me>
-- ARGV  1 the job that runs, which stays, "" if none does   2 its token: if the job does not carry it any more, nothing
--       is done   then the ids to put back; none: all that stand in the claims
-- Promise: what is no longer in the claims (it was taken back) is left alone; deaths are not counted.
-- Returns the ids that were put back.

local running, ids, claimed, back = ARGV[1], {unpack(ARGV, 3)}, {}, {}
if running ~= '' and redis.call('HGET', 'rq:job:' .. running, 'rqjobs_token') ~= ARGV[2] then return {} end
local all = redis.call('LRANGE', KEYS[1], 0, -1)
for _, id in ipairs(all) do claimed[id] = id ~= running end
if #ids == 0 then ids = all end
for i = #ids, 1, -1 do
  local id = ids[i]
  if claimed[id] then
    local fields = read(id, 'origin', 'status', 'rqjobs_token')
    local queue = fields and fields[1]
    if queue and waits(fields[2]) then
      put_back(queue, id)
      back[#back + 1] = id
    end
    redis.call('LREM', KEYS[1], 1, id)
    if queue and fields[3] then redis.call('ZREM', 'rq:wip:' .. queue, id .. ':' .. fields[3]) end
  end
end
return back
