-- TensorBoard's event files: records of length, checksum, data, checksum (TFRecord), each an Event in protocol-buffer form.
--   local board = assert(tensorboard.open "runs/first"); board:scalars(step, { loss = 1.2 }); board:close()
local bit = require "bit"
local system = require "onn.core.system"

local tensorboard = {}
local band, bor, bxor, rshift, lshift = bit.band, bit.bor, bit.bxor, bit.rshift, bit.lshift

-- CRC-32C (Castagnoli, reflected 0x82F63B78), by bytes.
local crc_table = {}
for i = 0, 255 do
  local c = i
  for _ = 1, 8 do c = bxor(rshift(c, 1), band(c, 1) == 1 and 0x82F63B78 or 0) end
  crc_table[i] = c
end

-- The checksum of a string, an unsigned number.
function tensorboard.crc32c(text)
  local c = bit.bnot(0)
  for i = 1, #text do c = bxor(rshift(c, 8), crc_table[band(bxor(c, text:byte(i)), 255)]) end
  return bit.bnot(c) % 2 ^ 32
end

local function masked(text)
  local c = bit.tobit(tensorboard.crc32c(text))
  return bit.tobit(bor(rshift(c, 15), lshift(c, 17)) + bit.tobit(0xa282ead8)) % 2 ^ 32
end

-- n (below 2^53) as `bytes` little-endian bytes.
local function little(n, bytes)
  local out = {}
  for i = 1, bytes do
    out[i] = string.char(n % 256)
    n = math.floor(n / 256)
  end
  return table.concat(out)
end

local function varint(n)
  local out = {}
  while n >= 128 do
    out[#out + 1] = string.char(n % 128 + 128)
    n = math.floor(n / 128)
  end
  out[#out + 1] = string.char(n)
  return table.concat(out)
end

-- IEEE numbers: `fraction` bits of significand, `bias` of the exponent; rounded to nearest even, subnormals included.
local function ieee(x, fraction, bias, bytes)
  local sign = (x < 0 or 1 / x < 0) and 1 or 0
  local exponent, significand
  if x ~= x then
    exponent, significand, sign = 2 * bias + 1, 2 ^ (fraction - 1), 0
  elseif x == 0 then
    exponent, significand = 0, 0
  else
    local m, e = math.frexp(math.abs(x)) -- m in [0.5, 1)
    local lowest = math.max(e - 1, 1 - bias)
    local scaled = math.ldexp(m, e - lowest + fraction)
    significand = math.floor(scaled)
    local rest = scaled - significand
    if rest > 0.5 or (rest == 0.5 and significand % 2 == 1) then significand = significand + 1 end
    exponent = lowest + bias
    if significand < 2 ^ fraction then exponent = 0 else significand = significand - 2 ^ fraction end
    if significand >= 2 ^ fraction then exponent, significand = exponent + 1, 0 end
    if exponent > 2 * bias or m == math.huge then exponent, significand = 2 * bias + 1, 0 end
  end
  local low = bytes - 2 -- the two upper bytes hold sign, exponent and the significand's highest bits
  local top = fraction - 8 * low
  return little(significand % 2 ^ (8 * low), low) .. little(sign * 2 ^ 15 + exponent * 2 ^ top + math.floor(significand / 2 ^ (8 * low)), 2)
end
function tensorboard.float32(x) return ieee(x, 23, 127, 4) end
function tensorboard.float64(x) return ieee(x, 52, 1023, 8) end

local function field(number, kind, data) return varint(number * 8 + kind) .. data end
local function block(number, data) return field(number, 2, varint(#data) .. data) end

-- tensorflow.Event: wall_time = 1, step = 2, file_version = 3, summary = 5; Summary.value = 1: tag = 1, simple_value = 2.
local function event(time, step, rest) return field(1, 1, tensorboard.float64(time)) .. field(2, 0, varint(step)) .. rest end

local Board = {}
Board.__index = Board

local function put(self, data)
  local length = little(#data, 8)
  local ok, message = self.file:write(length, little(masked(length), 4), data, little(masked(data), 4))
  if ok then ok, message = self.file:flush() end
  if not ok then return nil, self.path .. ": " .. tostring(message), "io" end
  return true
end

-- Begins an event file in `directory`. Returns the board, or nil, message, code.
function tensorboard.open(directory)
  local ok, message, code = system.mkdir_p(directory)
  if not ok then return nil, message, code end
  local time = os.time()
  local path, file
  for n = 0, 999 do -- a second run within the same second gets a file of its own
    path = ("%s/events.out.tfevents.%d.%s.%d"):format(directory, time, system.host_name(), n)
    if not system.exists(path) then break end
  end
  file, message = io.open(path, "wb")
  if not file then return nil, message, "io" end
  local self = setmetatable({ file = file, path = path }, Board)
  ok, message, code = put(self, event(time, 0, block(3, "brain.Event:2")))
  if not ok then return nil, message, code end
  return self
end

-- Values {tag = number} of one step. Returns true, or nil, message, code.
function Board:scalars(step, values)
  local tags, summary = {}, {}
  for tag in pairs(values) do tags[#tags + 1] = tag end
  table.sort(tags)
  for i, tag in ipairs(tags) do summary[i] = block(1, block(1, tag) .. field(2, 5, tensorboard.float32(values[tag]))) end
  return put(self, event(system.wall and system.wall() or os.time(), step, block(5, table.concat(summary))))
end

function Board:close() self.file:close() end

return tensorboard
