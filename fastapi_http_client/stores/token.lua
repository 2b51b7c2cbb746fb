-- A token that one process fetches for all.
--
-- KEYS[1]  a hash: value (encrypted), version, expires (us); holder and lock_ends (us) while somebody fetches; written (us)
-- ARGV     operation, holder; then by operation
--            get      version that is not wanted (0: none), lease (us)
--            put      value, lifetime (us)
--            release
-- returns  get: 'use', value, version, us left | 'wait', us left of the lock | 'fetch'     put: version, or '0'

local operation, holder = ARGV[1], ARGV[2]
local now = now_in_us()

expect('hash')
local raw = redis.call('HGETALL', KEYS[1])
local token = {}
for i = 1, #raw, 2 do
  token[raw[i]] = raw[i + 1]
end
local back = gone_back(token.written, now)
local version, expires = tonumber(token.version) or 0, (tonumber(token.expires) or back) - back
local lock_ends = (tonumber(token.lock_ends) or back) - back
if back > 0 then
  redis.call('HSET', KEYS[1], 'expires', digits(expires), 'lock_ends', digits(lock_ends), 'written', digits(now))
end
local is_free = not token.holder or token.holder == holder or lock_ends <= now

if operation == 'get' then
  if token.value and expires > now and version ~= tonumber(ARGV[3]) then
    return {'use', token.value, digits(version), expires - now}
  end
  if not is_free then
    return {'wait', lock_ends - now}
  end
  local lease = tonumber(ARGV[4])
  redis.call('HSET', KEYS[1], 'holder', holder, 'lock_ends', digits(now + lease), 'written', digits(now))
  keep_for(math.max(expires - now, lease))
  return {'fetch'}
end

if operation == 'put' then
  if not is_free then
    return '0'
  end
  local lifetime = tonumber(ARGV[4])
  version = math.max(now, version + 1)
  redis.call('DEL', KEYS[1])
  redis.call(
    'HSET', KEYS[1], 'value', ARGV[3], 'version', digits(version), 'expires', digits(now + lifetime), 'written', digits(now)
  )
  keep_for(lifetime)
  return digits(version)
end

if token.holder == holder then
  redis.call('HDEL', KEYS[1], 'holder', 'lock_ends')
end
return '0'
