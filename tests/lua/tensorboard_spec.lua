local support = require "tests.support"
local system = require "onn.core.system"
local tensorboard = require "onn.tensorboard"

local function hex(text) return (text:gsub(".", function(c) return ("%02x"):format(c:byte()) end)) end

local function number(text)
  local n = 0
  for i = #text, 1, -1 do n = n * 256 + text:byte(i) end
  return n
end

describe("TensorBoard's event files", function()
  teardown(support.scratch_remove)

  it("carry CRC-32C checksums", function()
    assert.equal(0xe3069283, tensorboard.crc32c "123456789") -- the algorithm's check value
    assert.equal(0x8a9136aa, tensorboard.crc32c(("\0"):rep(32))) -- RFC 3720, B.4
    assert.equal(0x62a8ab43, tensorboard.crc32c(("\255"):rep(32)))
    assert.equal(0, tensorboard.crc32c "")
  end)

  it("carry IEEE numbers", function()
    for value, bytes in pairs { [0] = "00000000", [1] = "0000803f", [-2.5] = "000020c0", [0.1] = "cdcccc3d", [1e-45] = "01000000",
      [16777217] = "0000804b", [1e39] = "0000807f", [-math.huge] = "000080ff", [3.4028234e38] = "ffff7f7f", [1.1754944e-38] = "00008000",
      [5.877472e-39] = "00004000" } do
      assert.equal(bytes, hex(tensorboard.float32(value)), value)
    end
    assert.equal("0000c07f", hex(tensorboard.float32(0 / 0)))
    assert.equal("182d4454fb210940", hex(tensorboard.float64(math.pi)))
    assert.equal("9a9999999999b9bf", hex(tensorboard.float64(-0.1)))
    assert.equal("0100000000000000", hex(tensorboard.float64(2 ^ -1074)))
  end)

  it("hold one record per event, each whole and checked", function()
    local folder = support.scratch()
    local board = assert(tensorboard.open(folder .. "/run"))
    assert(board:scalars(1, { loss = 2.5, lr = 1e-3 }))
    assert(board:scalars(300, { loss = 2 }))
    board:close()
    local names = system.list(folder .. "/run")
    assert.equal(1, #names)
    assert.matches("^events%.out%.tfevents%.%d+%.", names[1])
    local text, at, records = support.read(folder .. "/run/" .. names[1]), 1, {}
    local function masked(data)
      local c = tensorboard.crc32c(data)
      return (math.floor(c / 2 ^ 15) + (c % 2 ^ 15) * 2 ^ 17 + 0xa282ead8) % 2 ^ 32
    end
    while at <= #text do
      local length = number(text:sub(at, at + 7))
      assert.equal(masked(text:sub(at, at + 7)), number(text:sub(at + 8, at + 11)))
      local data = text:sub(at + 12, at + 11 + length)
      assert.equal(masked(data), number(text:sub(at + 12 + length, at + 15 + length)))
      records[#records + 1] = data
      at = at + 16 + length
    end
    assert.equal(#text + 1, at)
    assert.equal(3, #records)
    assert.equal("\26\13brain.Event:2", records[1]:sub(-15)) -- file_version
    -- wall_time (9 bytes), step, summary { value { tag "loss", simple_value } value { tag "lr", ... } }
    assert.equal("\16\1\42\24" .. "\10\11\10\4loss\21" .. tensorboard.float32(2.5) .. "\10\9\10\2lr\21" .. tensorboard.float32(1e-3),
      records[2]:sub(10))
    assert.equal("\16\172\2\42\13" .. "\10\11\10\4loss\21" .. tensorboard.float32(2), records[3]:sub(10))
  end)

  it("do not take each other's place", function()
    local folder = support.scratch()
    for _ = 1, 3 do assert(tensorboard.open(folder)):close() end
    assert.equal(3, #system.list(folder))
  end)
end)
