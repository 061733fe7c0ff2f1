-- Add what a worker has counted to the metrics of all workers.
--
-- KEYS  1 rqjobs:metrics   2 rqjobs:metrics:last:<worker>
-- ARGV  1 the number of this sending of the worker   2 the number of series that are kept
--       then for each series: its function and queue, the number of the words that follow, and
--       the words: the name of a count and what to add to it, and so on
-- Promise: what is sent again is not counted again. Further series than are kept count together as
-- those of the function and the queue "(other)".
-- Returns "done", or "already".

local metrics, last_sending, number, max_series = KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2])
local SECONDS_REMEMBERED = 600
local OTHER = '(other) (other)'

local function kept_series(name)
  if name == OTHER or redis.call('HEXISTS', metrics, 'run:sum ' .. name) == 1 then return name end
  local known = tonumber(redis.call('HGET', metrics, 'series') or '') or 0
  if known >= max_series then return OTHER end
  redis.call('HSET', metrics, 'series', string.format('%d', known + 1), 'run:sum ' .. name, '0')
  return name
end

redis.call('HLEN', metrics)  -- a key of the wrong type fails here, before the first write
if redis.call('GET', last_sending) == number then return 'already' end
local at = 3
while at <= #ARGV do
  local series = kept_series(ARGV[at])
  local last = at + 1 + tonumber(ARGV[at + 1])
  for i = at + 2, last, 2 do
    redis.pcall('HINCRBY', metrics, ARGV[i] .. ' ' .. series, ARGV[i + 1])
  end
  at = last + 1
end
redis.call('SET', last_sending, number, 'EX', SECONDS_REMEMBERED)
return 'done'
