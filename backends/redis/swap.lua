-- Swaps records. KEYS: the records. ARGV, three for each: the expected stamp (8 bytes; '' no
-- record; '*' anything), the new bytes ('' removes: a bare stamp stays behind as a tombstone), and
-- the ms to keep them ('' for ever). Returns three for each: 1, the new stamp, what was there (its
-- stamp; '' no record; '?' no stamp); or 0, the present time, the value (nil: none).
local time = redis.call('TIME')
local now, answer = time[1] * 1000000 + time[2], {}
for i, key in ipairs(KEYS) do
  local expected, bytes, keep = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
  local old = redis.pcall('GET', key)
  if type(old) == 'table' then
    if not string.find(old.err, 'WRONGTYPE', 1, true) then return old end
    old = '?' -- a list or the like: no record, but never absent
  end
  local last, found = 0, old and '?' or ''
  if old and #old >= 8 then
    local high, low = struct.unpack('>I4I4', old)
    if high < 2097152 then -- below 2^53, up to which Lua's numbers are exact
      last, found = high * 4294967296 + low, #old > 8 and string.sub(old, 1, 8) or ''
    end
  end
  if expected == found or expected == '*' then
    local stamp = math.max(now, last + 1)
    local value = struct.pack('>I4I4', math.floor(stamp / 4294967296), stamp % 4294967296) .. bytes
    if keep == '' then
      redis.call('SET', key, value)
    else -- a stamp ahead of the clock (it was set back) ends so much later
      redis.call('SET', key, value, 'PX', keep + math.ceil((stamp - now) / 1000))
    end
    answer[3 * i - 2], answer[3 * i - 1], answer[3 * i] = 1, stamp, found
  else
    answer[3 * i - 2], answer[3 * i - 1], answer[3 * i] = 0, now, old
  end
end
return answer
