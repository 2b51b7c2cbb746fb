-- Who is there: a process says so from time to time, and learns how many do.
--
-- KEYS[1]  a sorted set: process by the end of its lease (us)
-- ARGV     process, lease (us; 0: it goes)
-- returns  how many there are

local now, lease = now_in_us(), tonumber(ARGV[2])
expect('zset')
redis.call('ZADD', KEYS[1], digits(now + lease), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', digits(now))
if lease > 0 then -- nobody's ends later than ours, unless it was written before the server's clock went back
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. digits(now + lease), '+inf')
end
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
if last[2] then
  keep_for(last[2] - now)
end
return redis.call('ZCARD', KEYS[1])
