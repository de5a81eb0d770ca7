-- The runner itself: what it counts as failed, what it says aloud, how it ends.
local support = require "tests.support"
local run, write = support.run, support.write

describe("tests/run.lua", function()
  local folder
  before_each(function() folder = support.scratch() end)
  after_each(support.scratch_remove)

  local function specs(list)
    for name, code in pairs(list) do write(("%s/%s_spec.lua"):format(folder, name), code) end
    return run { "tests/run.lua", "--timeout", "2", folder }
  end

  it("ends with the count, and says aloud what was skipped", function()
    local status, out = specs { good = [[describe("good", function()
      it("holds", function() assert.equal(1, 1) end)
      it("waits", function() pending "no data here" end)
      pending "declared: no device here"
    end)]] }
    assert.equal(0, status)
    assert.matches("SKIPPED [^\n]+good waits %([^\n]*no data here%)\n", out)
    assert.matches("SKIPPED [^\n]+good declared: no device here\n", out)
    assert.matches("\n2 skipped\n1 passed, 0 failed\n$", out)
  end)

  it("counts as failed what fails, raises, crashes, hangs, does not load, or holds no test", function()
    local status, out = specs {
      wrong = 'it("is wrong", function() assert.equal(1, 2) end) it("raises", function() error "boom" end)',
      crash = 'it("crashes", function() os.execute "kill -s SEGV $PPID" end)',
      hangs = 'it("hangs", function() while true do end end)',
      syntax = 'it("is unfinished", function()',
      leaves = 'it("leaves early", function() os.exit(0) end)',
      none = "",
    }
    assert.equal(1, status)
    for _, text in ipairs { "wrong_spec.lua: is wrong\n", "wrong_spec.lua: raises\n", "crash_spec.lua\n  died of signal 11\n",
      "hangs_spec.lua\n  did not end within 2 s\n", "syntax_spec.lua: ", "leaves_spec.lua\n  ended with status 0\n",
      "none_spec.lua\n  holds no test\n" } do assert.truthy(out:find(text, 1, true), text .. out) end
    assert.matches("\n0 passed, 7 failed\n$", out)
  end)

  it("counts every --check as one test", function()
    write(folder .. "/a_spec.lua", 'it("holds", function() end)')
    local status, out = run { "tests/run.lua", "--check", "fine=true", "--check", "broken=echo why; exit 3", folder }
    assert.equal(1, status)
    assert.matches("FAILED broken\n  ended with status 3\n[^\n]*why\n", out)
    assert.matches("\n2 passed, 1 failed\n$", out)
  end)

  it("refuses a folder that is not there", function()
    local status, _, err = run { "tests/run.lua", folder .. "/none" }
    assert.equal(2, status)
    assert.matches("no such file or folder", err)
  end)
end)
