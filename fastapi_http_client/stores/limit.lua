-- Take tokens of a bucket that many processes share: `policies/shared_bucket.py` in Lua, see there.
--
-- KEYS[1]  a string: "<credit> <settled at, us> <capacity>"; no key is a full bucket, so the key lives until it is full
-- ARGV     price, capacity, ticks per us; least, most, ahead (us), returned
-- returns  tokens granted, us to wait

local price, capacity, scale = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local least, most, ahead, returned = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local now = now_in_us()

expect('string')
local credit, settled, size = string.match(redis.call('GET', KEYS[1]) or '', '^(-?%d+) (%d+) (%d+)$')
local went_back = false -- the server's clock, since then
if credit then
  credit, settled, size = tonumber(credit), tonumber(settled), tonumber(size)
  if size ~= capacity and size > 0 then -- the limit was changed: as full as before, in other ticks
    credit = math.floor(credit * (capacity / size))
  end
  went_back = settled > now
  credit = math.min(capacity, credit + math.max(now - settled, 0) * scale)
else
  credit = capacity
end

if returned > 0 and credit >= 0 then
  credit = math.min(capacity, credit + returned * price)
end

local wait = 0
local granted = math.min(most, math.max(math.floor(credit / price), 0))
if granted < least then
  local needed = least * price
  if credit + ahead * scale < needed and credit < capacity then
    granted = 0
    wait = math.ceil((math.min(needed, capacity) - credit) / scale)
  else
    granted = least
  end
end
if granted > 0 then
  credit = credit - granted * price
  wait = math.ceil(math.max(-credit, 0) / scale)
end

if granted > 0 or returned > 0 or went_back then -- a refusal changes nothing that time does not
  if credit >= capacity then
    redis.call('DEL', KEYS[1])
  else
    redis.call('SET', KEYS[1], digits(credit) .. ' ' .. digits(now) .. ' ' .. digits(capacity))
    keep_for((capacity - credit) / scale)
  end
end
return {granted, wait}
