-- Writes a record back as it is, so that a WAIT that follows covers all that was read before. Where
-- there is none, writes a tombstone: a bare stamp. KEYS: the record. ARGV: the ms to keep a
-- tombstone ('' for ever).
local old = redis.call('GET', KEYS[1])
if old then
  redis.call('SET', KEYS[1], old, 'KEEPTTL')
else
  local time = redis.call('TIME')
  local stamp = time[1] * 1000000 + time[2]
  local value = struct.pack('>I4I4', math.floor(stamp / 4294967296), stamp % 4294967296)
  if ARGV[1] == '' then
    redis.call('SET', KEYS[1], value)
  else
    redis.call('SET', KEYS[1], value, 'PX', ARGV[1])
  end
end
return 1
