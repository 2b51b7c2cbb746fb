-- What every script goes on with.

local function digits(number)
  return string.format('%.0f', number)
end

local function expect(kind)
  -- A value of another type is somebody else's, and in the way.
  local found = redis.call('TYPE', KEYS[1]).ok
  if found ~= kind and found ~= 'none' then
    redis.call('DEL', KEYS[1])
  end
end
