local nearest = require "onn.nearest"
local plot = require "onn.plot"
local progress = require "onn.progress"
local units = require "onn.units"

describe("units", function()
  it("parse sizes: thousands, and 1024s with an i", function()
    for text, bytes in pairs { ["4GB"] = 4e9, ["8GiB"] = 8 * 2 ^ 30, ["512 mb"] = 512e6, ["1.5K"] = 1500, ["77"] = 77,
      ["0"] = 0, ["2TiB"] = 2 * 2 ^ 40, ["3B"] = 3, [".5KiB"] = 512 } do
      assert.equal(bytes, units.parse_bytes(text), text)
    end
    for _, text in ipairs { "", "GB", "-1GB", "1e9", "4XB", "4 G B", "1.2.3GB", "0x10", "9999999TB", "nan", "inf" } do
      local value, message = units.parse_bytes(text)
      assert.is_nil(value, text)
      assert.truthy(message:find("'" .. text .. "'", 1, true))
    end
  end)

  it("parse times", function()
    for text, seconds in pairs { ["60s"] = 60, ["500ms"] = 0.5, ["1h30m"] = 5400, ["2.5h"] = 9000, ["90"] = 90, ["1d"] = 86400,
      ["1 min 5 s"] = 65 } do
      assert.near(seconds, units.parse_duration(text), 1e-9, text)
    end
    for _, text in ipairs { "", "s", "-5s", "1x", "5s3", "1h-2m" } do assert.is_nil((units.parse_duration(text)), text) end
  end)

  it("write sizes, counts and times", function()
    assert.equal("0 B", units.bytes(0))
    assert.equal("999 B", units.bytes(999))
    assert.equal("1.00 MB", units.bytes(999999))
    for value, text in pairs { [14349824] = "14.4 MB", [14400000] = "14.4 MB", [999001] = "1.00 MB", [12] = "12 B", [1001] = "1.01 KB" } do
      assert.equal(text, units.need(value))
      assert.is_true(units.parse_bytes(units.need(value)) >= value)
    end
    assert.equal("29.5 GB", units.bytes(29.46e9))
    assert.equal("14.7B", units.count(14.7e9))
    assert.equal("12", units.count(12))
    assert.equal("20.0 ms", units.seconds(0.02))
    assert.equal("3 min 20 s", units.seconds(200))
    assert.equal("1 h 06 min", units.seconds(4000))
    assert.equal("?", units.seconds(math.huge))
    assert.equal("430 GFLOP/s", units.flops(4.3e11))
  end)
end)

describe("nearest", function()
  it("finds one slip, a swap, or a beginning, and nothing far away", function()
    local names = { "lora_rank", "chunk_size", "model_path" }
    assert.equal("lora_rank", nearest.find("lora_rnak", names))
    assert.equal("chunk_size", nearest.find("chunksize", names))
    assert.equal("model_path", nearest.find("model", names))
    assert.is_nil(nearest.find("zebra", names))
  end)
  it("checks option tables", function()
    assert.has_error(function() nearest.check({ rnak = 1 }, { "rank" }, "lora.new") end,
      "lora.new: unknown option 'rnak'; did you mean 'rank'?")
  end)
end)

describe("progress", function()
  local function recorder()
    local out = { text = "" }
    function out:write(...) for _, part in ipairs { ... } do self.text = self.text .. part end return self end
    function out.flush() end
    return out
  end

  it("writes plain lines, seldom, away from a terminal", function()
    local out, now = recorder(), 0
    local function clock() return now end
    local p = progress.new { total = 100, label = "train", unit = "steps", out = out, terminal = false, clock = clock }
    for step = 0, 100, 10 do
      p:update(step, "loss 2.0")
      now = now + 4
    end
    p:finish "done"
    assert.is_nil(out.text:find "\27")
    local _, lines = out.text:gsub("\n", "\n")
    assert.equal(5, lines)
    assert.matches("train  30/100 steps  30 %%  loss 2.0  12.0 s  28.0 s left\n", out.text)
    assert.matches("train  100/100 steps  100 %%  done  44.0 s\n$", out.text)
  end)

  it("redraws one line within the width of a terminal, without colour if asked", function()
    local out, now = recorder(), 0
    local function clock() return now end
    local p = progress.new { total = 8, out = out, terminal = true, color = false, columns = 70, clock = clock }
    for step = 1, 8 do
      p:update(step, ("long note "):rep(20))
      now = now + 1
    end
    assert.is_nil(out.text:find "\27%[3")
    assert.is_nil(out.text:find "\n")
    for line in out.text:gmatch "\r\27%[K([^\r]*)" do
      local _, letters = line:gsub("[^\128-\191]", "")
      assert.is_true(letters < 70)
    end
  end)
end)

describe("plot", function()
  it("draws lines in braille and survives odd input", function()
    local text = plot.line({ 1, 2, 3, 4 }, { width = 10, height = 3, title = "t" })
    local lines = {}
    for line in text:gmatch "[^\n]+" do lines[#lines + 1] = line end
    assert.equal(6, #lines)
    assert.equal("t", lines[1])
    assert.matches("^4 │", lines[2])
    assert.matches("^1 │", lines[4])
    assert.matches("nothing", plot.line {})
    assert.matches("nothing", plot.line { 0 / 0, 1 / 0 })
    assert.truthy(plot.line { 5 })
    assert.truthy(plot.line({ { 1, 10 }, { 2, 0 }, { 3, 0.1 } }, { log = true }))
  end)
  it("draws bars", function()
    assert.equal("a  ██ 1\nbc ████ 2", plot.bars({ { "a", 1 }, { "bc", 2 } }, { width = 4 }))
    assert.truthy(plot.bars { { "a", 0 / 0 }, { "b", -1 } })
  end)
end)
