local progress = require "onn.progress"

-- A file that keeps what is written, and a clock that is set by hand.
local function paper()
  local sheet = { text = "" }
  function sheet:write(...) self.text = self.text .. table.concat { ... } end
  function sheet:flush() end
  return sheet
end

describe("progress", function()
  local now, sheet
  before_each(function() now, sheet = 100, paper() end)
  local function new(options)
    options.out, options.clock = sheet, function() return now end
    return progress.new(options)
  end

  it("writes plain lines now and then where there is no terminal", function()
    local bar = new { total = 1000, label = "train", unit = "steps", terminal = false }
    for step = 1, 22 do
      bar:update(step, "loss 2")
      now = now + 1
    end
    bar:finish()
    assert.equal("train  1/1000 steps  0 %  loss 2  0.00 us\ntrain  11/1000 steps  1 %  loss 2  10.0 s  16 min 29 s left\n"
      .. "train  21/1000 steps  2 %  loss 2  20.0 s  16 min 19 s left\ntrain  22/1000 steps  2 %  loss 2  22.0 s  17 min 05 s left\n",
      sheet.text)
    bar = new { total = 1, terminal = false }
    sheet.text = ""
    bar:update(1)
    bar:finish()
    assert.equal("1/1  100 %  0.00 us\n", sheet.text)
  end)

  it("redraws one line on a terminal, within its width", function()
    local bar = new { total = 4, unit = "steps", terminal = true, columns = 30, color = false }
    bar:update(2, ("x"):rep(50))
    assert.equal("\r\27[K2/4 steps  50 %  xxxxxxxxxxxx", sheet.text)
    sheet.text = ""
    bar.columns = 80
    now = now + 1
    bar:update(2, "x")
    assert.matches("^\r\27%[K██████████          ▏ 2/4 steps  50 %%  x  1%.00 s$", sheet.text)
    bar:finish()
    assert.equal("\n", sheet.text:sub(-1))
  end)

  it("shows nothing of what is soon over, or when it is quiet", function()
    local bar = new { total = 2, terminal = false, after = 1 }
    bar:update(1)
    bar:update(2)
    bar:finish()
    assert.equal("", sheet.text)
    bar = new { total = 2, terminal = false, quiet = true }
    bar:update(2)
    bar:line "words"
    bar:finish()
    assert.equal("", sheet.text)
    bar = new { total = 2, label = "loading", terminal = false, after = 1 }
    now = now + 2
    bar:update(1)
    assert.equal("loading  1/2  50 %  2.00 s\n", sheet.text)
  end)
end)
