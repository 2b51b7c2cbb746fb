-- What every script goes on with.

local function digits(number)
  return string.format('%.0f', number)
end

local function gone_back(written, now)
  -- How far the server's clock has gone back since something was written, in us. The times that were written go back
  -- with it: nothing must stay open, locked or in use for as long as the clock needs to catch up.
  return math.max((tonumber(written) or 0) - now, 0)
end

local function expect(kind)
  -- A value of another type is somebody else's, and in the way.
  local found = redis.call('TYPE', KEYS[1]).ok
  if found ~= kind and found ~= 'none' then
    redis.call('DEL', KEYS[1])
  end
end
