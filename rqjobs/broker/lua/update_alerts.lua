-- Take in what was observed for the rules of the alerts: decide which alerts begin and which are
-- over.
--
-- KEYS  1 rqjobs:alerts   2 rqjobs:totals   then a list of events for each channel
-- ARGV  1 seconds for which all must be well before an alert is over   2 seconds for which an
--       increase counts as bad   3 number of alerts, and 4 of events in a list, that are kept
--       then for each observation: the alert, "level" or "count", its value, the seconds for which
--       it must be bad, and its rule, subject and message as JSON
-- Promise: an alert begins once and is over once, whoever observes, and however often. A level is
-- bad if its value is "1". A count is bad if it has increased lately; its first value is only
-- remembered. An alert that is not observed any more is well. The events are stored in the same
-- step, in order.
-- Returns the number of events.

local alerts, totals = KEYS[1], KEYS[2]
local clear_seconds, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local max_alerts, max_events = tonumber(ARGV[3]), tonumber(ARGV[4])
local now, events, observed = redis_time(), 0, {}

-- A state in Redis, without what is not of the right type, or could not be stored again.
local function read_state(text)
  local is_read, stored = pcall(cjson.decode, text or '')
  if not is_read or type(stored) ~= 'table' then return {} end
  local state = {}
  for _, field in ipairs({'since', 'bad', 'good', 'changed', 'value'}) do
    local number = stored[field]
    if type(number) == 'number' and math.abs(number) < 2 ^ 53 then state[field] = number end
  end
  for _, field in ipairs({'id', 'rule', 'subject', 'message'}) do
    if type(stored[field]) == 'string' then state[field] = stored[field] end
  end
  if not state.id then state.since = nil end
  return state
end

local function add_event(name, state, word)
  events = events + 1
  local event = cjson.encode({id = state.id .. '-' .. word, state = word, alert = name,
    rule = state.rule, subject = state.subject, message = state.message,
    began = state.since, at = now})
  for i = 3, #KEYS do
    redis.call('RPUSH', KEYS[i], event)
    redis.call('LTRIM', KEYS[i], -max_events, -1)
  end
end

local function is_bad(state, kind, value)
  if kind == 'level' then return value == '1' end
  local number, before = tonumber(value), tonumber(state.value)
  if before and number > before then state.changed = now end
  state.value = number
  return state.changed and now - state.changed < window
end

local function begin_or_wait(name, state, hold)
  state.good = nil
  state.bad = state.bad or now
  if not state.since and now - state.bad >= hold then
    state.since = now
    state.id = string.format('%d-%d', now, redis.call('HINCRBY', totals, 'alerts', 1))
    add_event(name, state, 'begin')
  end
end

local function end_or_wait(name, state)
  state.bad = nil
  if not state.since then return end
  state.good = state.good or now
  if now - state.good >= clear_seconds then
    add_event(name, state, 'over')
    state.since, state.good = nil, nil
  end
end

local function store(name, state)
  if state.since or state.bad or state.value then
    redis.call('HSET', alerts, name, cjson.encode(state))
  else
    redis.call('HDEL', alerts, name)
  end
end

local stored = {}
local reply = redis.call('HGETALL', alerts)
for i = 1, #reply, 2 do stored[reply[i]] = reply[i + 1] end
local known = #reply / 2
for i = 5, #ARGV, 5 do
  local name, kind, value, hold, about = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  observed[name] = true
  if stored[name] or known < max_alerts then
    if not stored[name] then known = known + 1 end
    local state = read_state(stored[name])
    if is_bad(state, kind, value) then
      for field, text in pairs(cjson.decode(about)) do state[field] = text end
      begin_or_wait(name, state, tonumber(hold))
    else
      end_or_wait(name, state)
    end
    store(name, state)
  end
end
for name, text in pairs(stored) do
  if not observed[name] then
    local state = read_state(text)
    state.value = nil
    end_or_wait(name, state)
    store(name, state)
  end
end
return events
