-- What every script begins with. The time is the server's, in whole microseconds: below 2^53, so a Lua number is exact.

local function now_in_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local function keep_for(us)
  redis.call('PEXPIRE', KEYS[1], math.max(1, math.ceil(us / 1000)))
end
