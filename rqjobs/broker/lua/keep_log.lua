-- Keep lines that a job has logged.
--
-- KEYS  1 job hash   2 rqjobs:log:<id>
-- ARGV  1 token of the run   2 the number of its attempt, as the worker knows it
--       3 the number of this write: each write of a run has a higher one
--       4 lines of the run that were dropped before these   5 bytes of a log that are kept
--       then for each chunk of lines: their number, and the lines
-- Promise: the lines are added once, and only while the job carries this token. Of a longer log the
-- last chunks are kept. Nothing is written when Redis is full.
-- Returns "kept", "already" (this write was made before), "refused", or "odd" (the log's key has
-- the wrong type).
--
-- The log is a stream with an entry for each chunk. The id of an entry is "<bytes>-<lines>": all that
-- the log has had up to and including this chunk. So the oldest bytes are dropped by an id, a reader
-- sees how many lines are missing, and followers wait with XREAD.

local job, log, token, attempt = KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2])
local number, dropped, kept_bytes = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local WAITING = {queued = true, scheduled = true, deferred = true}  -- plain RQ has enqueued it again

local fields = redis.pcall('HMGET', job, 'rqjobs_token', 'status', 'rqjobs_log')
if fields.err or fields[1] ~= token or WAITING[fields[2]] then return 'refused' end
local kind = redis.call('TYPE', log).ok
if kind ~= 'stream' and kind ~= 'none' then return 'odd' end

-- What the newest entry says: the bytes and lines so far, and the attempt, token and write.
local function newest()
  local found = {bytes = 0, lines = 0, attempt = 0, write = 0}
  local entry = kind == 'stream' and redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if not entry then return found end
  local bytes, lines = string.match(entry[1], '^(%d+)-(%d+)$')
  found.bytes, found.lines = tonumber(bytes), tonumber(lines)
  for i = 1, #entry[2], 2 do
    local name, value = entry[2][i], entry[2][i + 1]
    if name == 'token' then found.token = value end
    if name == 'attempt' or name == 'write' then found[name] = tonumber(value) or 0 end
  end
  return found
end

-- Redis allocates 4 KiB for a new stream. A copy has only the memory that it needs.
local function create(id, words)
  redis.pcall('XADD', 'rqjobs:result', id, unpack(words))
  local is_copied = redis.pcall('COPY', 'rqjobs:result', log) == 1
  redis.call('DEL', 'rqjobs:result')
  return is_copied
end

-- Drop the chunks that begin before this byte.
local function trim(first_byte)
  local id = string.format('%.0f', first_byte)
  local oldest = redis.call('XRANGE', log, id, '+', 'COUNT', 1)[1]
  if not oldest then return end
  local end_byte = tonumber(string.match(oldest[1], '^%d+'))
  if end_byte - #oldest[2][#oldest[2]] < first_byte then id = string.format('%.0f', end_byte + 1) end
  redis.call('XTRIM', log, 'MINID', id)
end

if not fields[3] then
  redis.call('HSET', job, 'rqjobs_log', '1')
  redis.call('DEL', log)  -- of an earlier life of the id
  kind = 'none'
end
local last = newest()
if last.token == token then
  if last.write >= number then return 'already' end
  attempt = last.attempt
else
  attempt = math.max(attempt, last.attempt + 1)
end
local bytes, lines = last.bytes, last.lines + dropped
for i = 6, #ARGV, 2 do
  bytes, lines = bytes + #ARGV[i + 1], lines + tonumber(ARGV[i])
  local id = string.format('%.0f-%.0f', bytes, lines)
  local words = {'attempt', attempt, 'token', token, 'write', number, 'lines', ARGV[i + 1]}
  if kind == 'stream' or not create(id, words) then
    local added = redis.pcall('XADD', log, id, unpack(words))
    if type(added) == 'table' then return added end  -- another program has written to the log
  end
  kind = 'stream'
end
if bytes > kept_bytes then trim(bytes - kept_bytes) end
redis.call('PERSIST', log)  -- a job that failed, and was requeued, had an expiry
return 'kept'
