-- One decision of a circuit that many processes share: `policies/circuit_breaker.py` in Lua, see there.
--
-- KEYS[1]  a hash: state (closed, open, half_open), epoch, failures (in a row), recovers_at (us), written (us),
--          probe:<name> = end of its lease (us), and with a failure rate: start, newest, calls:<n>, failed:<n> (window)
-- ARGV     operation; failure threshold, recovery timeout (us), probes, a tenth of the window (us), minimum of calls,
--          failure rate ('' for none); seconds to keep what is not used; then by operation
--            admit   name of the probe, lease (us)
--            record  epoch, name of the probe ('' for none), outcomes (S, F, I; '' only looks)
--            force   open | closed
-- returns  state, epoch, us to wait, 1 if admitted
--
-- A refused call changes nothing: no lease and no expiry is refreshed by it. Epochs are times, so that one which was
-- lost with its key never comes back.

local operation = ARGV[1]
local threshold, recovery, most = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local width, minimum, rate = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local forget = tonumber(ARGV[8]) * 1000000
local now = now_in_us()
local BUCKETS = 10
local RESOLUTION = 2000 -- us that a timer may end early

local c = {state = 'closed', epoch = now, failures = 0, recovers_at = 0, probes = {}, window = {}}
local changed = true

local function read()
  expect('hash')
  local raw = redis.call('HGETALL', KEYS[1])
  local fields = {}
  for i = 1, #raw, 2 do
    fields[raw[i]] = raw[i + 1]
  end
  local epoch, state = tonumber(fields.epoch), fields.state
  if not epoch or (state ~= 'closed' and state ~= 'open' and state ~= 'half_open') then
    return
  end
  local back = gone_back(fields.written, now)
  changed = back > 0
  c.state, c.epoch = state, epoch
  c.failures = tonumber(fields.failures) or 0
  c.recovers_at = (tonumber(fields.recovers_at) or back) - back
  for name, value in pairs(fields) do
    local probe = string.match(name, '^probe:(.*)$')
    if probe then
      c.probes[probe] = (tonumber(value) or back) - back
    end
  end
  if fields.start then
    c.window = {start = tonumber(fields.start) - back, newest = tonumber(fields.newest)}
    for n = 0, BUCKETS - 1 do
      c.window['calls:' .. n] = tonumber(fields['calls:' .. n])
      c.window['failed:' .. n] = tonumber(fields['failed:' .. n])
    end
  end
end

local function write()
  local last = math.max(now, c.recovers_at)
  local fields = {
    'state', c.state, 'epoch', digits(c.epoch), 'failures', digits(c.failures), 'written', digits(now),
  }
  local function add(name, number)
    fields[#fields + 1] = name
    fields[#fields + 1] = digits(number)
  end
  if c.state == 'open' then
    add('recovers_at', c.recovers_at)
  end
  for probe, ends in pairs(c.probes) do
    add('probe:' .. probe, ends)
    last = math.max(last, ends)
  end
  for name, number in pairs(c.window) do
    add(name, number)
  end
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], unpack(fields))
  keep_for(last - now + forget)
end

local function enter(state)
  c.state, c.epoch, c.failures, c.probes, c.window = state, math.max(now, c.epoch + 1), 0, {}, {}
  changed = true
end

local function trip()
  c.recovers_at = now + recovery
  enter('open')
end

-- the window: calls and failures of the last ten tenths

local function totals()
  local calls, failed = 0, 0
  for n = 0, BUCKETS - 1 do
    calls = calls + (c.window['calls:' .. n] or 0)
    failed = failed + (c.window['failed:' .. n] or 0)
  end
  return calls, failed
end

local function roll()
  local passed = math.floor((now - c.window.start) / width) - c.window.newest
  if passed < 0 or passed >= BUCKETS then
    c.window = {}
    return
  end
  for _ = 1, passed do
    c.window.newest = c.window.newest + 1
    local oldest = c.window.newest % BUCKETS
    c.window['calls:' .. oldest], c.window['failed:' .. oldest] = nil, nil
  end
end

local function add_to_window(failed)
  if c.window.start then
    roll()
  end
  if totals() == 0 then
    c.window = {start = now, newest = 0}
  end
  local n = c.window.newest % BUCKETS
  c.window['calls:' .. n] = (c.window['calls:' .. n] or 0) + 1
  if failed then
    c.window['failed:' .. n] = (c.window['failed:' .. n] or 0) + 1
  end
end

local function count(failed)
  local before = c.failures
  c.failures = failed and before + 1 or 0
  if c.failures >= threshold then
    trip()
  elseif rate then
    add_to_window(failed)
    changed = true
    local calls, failures = totals()
    if calls >= minimum and failures / calls >= rate then
      trip()
    end
  elseif c.failures ~= before then
    changed = true
  end
end

-- probes

local function admit_probe(name, lease)
  local live, first = 0, nil
  for probe, ends in pairs(c.probes) do
    if ends - now > RESOLUTION then
      live = live + 1
      first = math.min(first or ends, ends)
    else
      c.probes[probe] = nil
    end
  end
  if live >= most then
    return false, first - now
  end
  c.probes[name] = now + lease
  changed = true
  return true, 0
end

local function record(epoch, probe, outcomes)
  for outcome in string.gmatch(outcomes, '.') do
    if epoch ~= c.epoch then
      return
    end
    if c.state == 'closed' then
      if outcome ~= 'I' then
        count(outcome == 'F')
      end
    elseif c.probes[probe] then
      local ends = c.probes[probe]
      c.probes[probe] = nil
      changed = true
      if outcome ~= 'I' and ends - now > RESOLUTION then
        if outcome == 'S' then
          enter('closed')
        else
          trip()
        end
      end
    end
  end
end

read()
local admitted, wait = false, 0
if operation == 'admit' then
  if c.state == 'open' and c.recovers_at - now <= RESOLUTION then
    enter('half_open')
  end
  if c.state == 'closed' then
    admitted = true
  elseif c.state == 'half_open' then
    admitted, wait = admit_probe(ARGV[9], tonumber(ARGV[10]))
  end
elseif operation == 'record' then
  record(tonumber(ARGV[9]), ARGV[10], ARGV[11])
elseif ARGV[9] == 'open' then
  trip()
else
  enter('closed')
end
if c.state == 'open' then
  wait = math.max(c.recovers_at - now, 0)
end
if changed then
  write()
elseif c.state == 'closed' and redis.call('PTTL', KEYS[1]) < forget / 2000 then
  keep_for(forget)
end
return {c.state, digits(c.epoch), wait, admitted and 1 or 0}
