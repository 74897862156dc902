-- Replaces records of known stamps. KEYS: the records. ARGV, three for each: the expected stamp (8
-- bytes), the new value (with its stamp), and the ms to keep it ('' for ever; '=' until the
-- replaced value would have expired). Returns one character for each: 1 replaced, 0 the stamp is
-- not the expected one.
local call, answer = redis.call, {}
for i, key in ipairs(KEYS) do
  local old = redis.pcall('GET', key)
  if type(old) == 'string' and #old > 8 and string.sub(old, 1, 8) == ARGV[3 * i - 2] then
    local keep = ARGV[3 * i]
    if keep == '=' then
      call('SET', key, ARGV[3 * i - 1], 'KEEPTTL')
    elseif keep == '' then
      call('SET', key, ARGV[3 * i - 1])
    else
      call('SET', key, ARGV[3 * i - 1], 'PX', keep)
    end
    answer[i] = '1'
  else
    answer[i] = '0'
  end
end
return table.concat(answer)
