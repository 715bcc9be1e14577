-- The arithmetic of buckets.py, with the clock of the server. One call is one step: nothing comes in between.
-- KEYS: the pauses of the account, then for each quota its bucket and the slots of the bucket in order. ARGV: the ask as JSON, then the time, if a test sets it.
local SLOT_S, WINDOW_S, NAMED_S, HOLD_S, STEP_S, EPSILON = 0.0625, 60.25, 120, 1.5, 1, 1e-6
local KEPT_MS = 86400000 -- a bucket that nobody used for a day is forgotten

local ask = cjson.decode(ARGV[1])
local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1000000
end

local function text(number) return string.format('%.17g', number) end
local function leaves(slot) return (slot + 1) * SLOT_S + WINDOW_S end
local function value(bucket, slot) return tonumber(redis.call('HGET', bucket.key, slot)) or 0 end

local function add(bucket, slot, amount)
  if amount == 0 then return end
  local there = redis.call('HGET', bucket.key, slot)
  if not there then redis.call('ZADD', bucket.slots, slot, slot) end
  redis.call('HSET', bucket.key, slot, text((tonumber(there) or 0) + amount))
  bucket.sum = bucket.sum + amount
end

local function count(bucket, moment, amount) add(bucket, math.floor(moment / SLOT_S), amount) end

local function name(bucket, quota, time)
  bucket.limit, bucket.rate, bucket.capacity, bucket.named =
    quota.limit, quota.rate, quota.rate * quota.burst, time
  bucket.level = math.min(bucket.level, bucket.capacity)
end

local FIELDS = { 'epoch', 'serial', 'at', 'level', 'sum', 'limit', 'rate', 'capacity', 'named' }

local function advance(key, slots, quota)
  local bucket = { key = key, slots = slots }
  for i, found in ipairs(redis.call('HMGET', key, unpack(FIELDS))) do
    if found then bucket[FIELDS[i]] = tonumber(found) end
  end
  local is_new = not bucket.epoch or quota.serial > bucket.serial or now < bucket.at - STEP_S
  if is_new or (bucket.sum ~= 0 and redis.call('EXISTS', slots) == 0) then -- the slots were evicted
    redis.call('DEL', key, slots)
    local epoch, serial = (bucket.epoch or 0) + 1, bucket.serial or 0
    bucket = {
      key = key, slots = slots, sum = 0, level = 0, at = now,
      epoch = math.max(epoch, math.floor(now * 1000000 + 0.5)),
      serial = math.max(serial, quota.serial),
    }
    name(bucket, quota, now)
    bucket.level = -bucket.rate * HOLD_S - math.max(0, math.max(1, quota.amount) - bucket.capacity)
  end
  local time = math.max(now, bucket.at)
  bucket.level = math.min(bucket.capacity, bucket.level + (time - bucket.at) * bucket.rate)
  bucket.at = time
  if quota.rate <= bucket.rate or time - bucket.named > NAMED_S then name(bucket, quota, time) end
  local last = math.floor((time - WINDOW_S) / SLOT_S) - 1 -- the last slot that has left
  local gone = redis.call('ZRANGEBYSCORE', slots, '-inf', last)
  for _, slot in ipairs(gone) do
    bucket.sum = bucket.sum - value(bucket, slot)
    redis.call('HDEL', key, slot)
  end
  if #gone > 0 then redis.call('ZREMRANGEBYSCORE', slots, '-inf', last) end
  if redis.call('ZCARD', slots) == 0 then bucket.sum = 0 end
  return bucket
end

local function save(bucket)
  local fields = {}
  for _, field in ipairs(FIELDS) do
    if bucket[field] then
      fields[#fields + 1] = field
      fields[#fields + 1] = text(bucket[field])
    end
  end
  redis.call('HSET', bucket.key, unpack(fields))
  redis.call('PEXPIRE', bucket.key, KEPT_MS)
  redis.call('PEXPIRE', bucket.slots, KEPT_MS)
end

local function delay_of(bucket, amount)
  local delay = math.max(0, (math.min(amount, bucket.capacity) - bucket.level) / bucket.rate)
  local over = bucket.sum + math.min(amount, bucket.limit) - bucket.limit
  local first, left_at = 0, bucket.at
  while over > EPSILON do
    local some = redis.call('ZRANGE', bucket.slots, first, first + 199)
    if #some == 0 then break end
    for i, there in ipairs(redis.call('HMGET', bucket.key, unpack(some))) do
      if over <= EPSILON then break end
      over = over - tonumber(there)
      left_at = leaves(tonumber(some[i]))
    end
    first = first + 200
  end
  return math.max(delay, left_at - bucket.at)
end

local buckets, is_known = {}, true
for i, quota in ipairs(ask.quotas) do
  buckets[i] = advance(KEYS[2 * i], KEYS[2 * i + 1], quota)
  if quota.epoch ~= 0 and quota.epoch ~= buckets[i].epoch then is_known = false end
end
for _, bucket in ipairs(buckets) do now = math.max(now, bucket.at) end

for _, pause in ipairs(ask.pauses) do
  local until_ = tonumber(redis.call('HGET', KEYS[1], pause[1])) or now
  redis.call('HSET', KEYS[1], pause[1], text(math.max(until_, now + pause[2])))
  redis.call('PEXPIRE', KEYS[1], KEPT_MS)
end
local pauses, found = {}, redis.call('HGETALL', KEYS[1])
for i = 1, #found, 2 do
  local left = tonumber(found[i + 1]) - now
  if left > 0 then
    pauses[#pauses + 1] = found[i]
    pauses[#pauses + 1] = text(left)
  else
    redis.call('HDEL', KEYS[1], found[i])
  end
end

local delay, binding, slot = 0, 1, 0
if is_known then
  for _, used in ipairs(ask.history) do count(buckets[used[1] + 1], now - used[2], used[3]) end
  for _, back in ipairs(ask.returned) do
    local bucket = buckets[back[1] + 1]
    bucket.level = math.min(bucket.capacity, bucket.level + back[3])
    add(bucket, back[2], -math.min(value(bucket, back[2]), back[3]))
  end
  for i, bucket in ipairs(buckets) do
    local quota = ask.quotas[i]
    if quota.overused ~= 0 then
      bucket.level = bucket.level - quota.overused
      count(bucket, now, quota.overused)
    end
  end
  for i, bucket in ipairs(buckets) do
    local amount = ask.quotas[i].amount
    local own = amount ~= 0 and delay_of(bucket, amount) or 0
    if own > delay then delay, binding = own, i end
  end
  slot = math.floor((now + delay + ask.ttl) / SLOT_S)
  for i, bucket in ipairs(buckets) do
    local amount = ask.quotas[i].amount
    if amount ~= 0 then
      bucket.level = bucket.level - amount
      bucket.serial = bucket.serial + 1
      add(bucket, slot, amount)
    end
  end
end

local epochs, serials, limits = {}, {}, {}
for i, bucket in ipairs(buckets) do
  save(bucket)
  epochs[i], serials[i], limits[i] = bucket.epoch, bucket.serial, text(bucket.limit)
end
return { is_known and 1 or 0, text(delay), binding - 1, slot, epochs, serials, limits, pauses }
