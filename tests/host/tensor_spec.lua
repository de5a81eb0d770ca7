local core = require "onn.core.tensor"
local onn = require "onn"
require "onn.tensor" -- prints them
local support = require "tests.support"

local dtypes = { f32 = 4, bf16 = 2, f16 = 2, i8 = 1, u8 = 1, i32 = 4, i64 = 8, bool = 1 }

local function used()
  collectgarbage()
  collectgarbage()
  return onn.memory().used
end

describe("tensors", function()
  after_each(function() core.set_budget(math.huge) end)

  it("of every dtype", function()
    for dtype, bytes in pairs(dtypes) do
      local t = core.zeros(dtype, { 3, 5 })
      assert.same({ dtype, 15, 15 * bytes }, { t:dtype(), t:numel(), t:bytes() })
      assert.same({ 3, 5 }, t:shape())
      assert.equal(5, t:size(2))
      assert.equal(5, t:size(-1))
      assert.equal(dtype .. " (3, 5)", t:describe())
      assert.equal(string.rep("\0", 15 * bytes), t:data())
      assert.equal(t:data(), core.from_data(t:data(), dtype, { 3, 5 }):data())
    end
    assert.error_matches(function() core.new("f64", { 1 }) end, "no dtype 'f64': expected f32, bf16")
  end)

  it("read and write tables, scalars and empty ones", function()
    local values = { { 1, 2, 3 }, { 4, 5, 6 } }
    for dtype in pairs(dtypes) do
      if dtype ~= "bool" then assert.same(values, core.from_table(values, dtype):totable()) end
    end
    assert.same({ true, false }, core.from_table({ true, false }, "bool"):totable())
    assert.equal(7, core.from_table(7):item())
    assert.same({}, core.new("f32", { 0 }):totable())
    assert.same({ {}, {} }, core.new("f32", { 2, 0 }):totable())
    assert.equal(2 ^ 53, core.from_table(2 ^ 53, "i64"):item())
    assert.error_matches(function() core.from_table { { 1, 2 }, { 3 } } end, "ragged table: level 2 should hold 2 values")
    assert.error_matches(function() core.from_table({ 1.5 }, "i32") end, "not an integer")
    assert.error_matches(function() core.from_table({ 2 ^ 31 }, "i32") end, "not an integer of the dtype")
    assert.error_matches(function() core.from_table({ 1, 2 }):item() end, "this tensor has 2")
    assert.error_matches(function() core.from_data("abc", "f32", { 1 }) end, "3 bytes do not fill a tensor of 4")
  end)

  it("refuse shapes that are none", function()
    assert.error_matches(function() core.new("f32", { -1 }) end, "negative size")
    assert.error_matches(function() core.new("f32", { 1.5 }) end, "expected an integer")
    assert.error_matches(function() core.new("f32", { 0 / 0 }) end, "expected an integer")
    assert.error_matches(function() core.new("f32", { 2 ^ 40, 2 ^ 40 }) end, "overflows")
    assert.error_matches(function() core.new("f32", { 1, 1, 1, 1, 1, 1, 1, 1, 1 }) end, "at most 8 dimensions, not 9")
  end)

  it("are viewed without copies", function()
    local t = core.from_table { { 1, 2, 3 }, { 4, 5, 6 } }
    local before = onn.memory().used
    local row, turned, flat = t:select(1, 2), t:transpose(1, 2), t:view(6)
    local part, wide = t:narrow(2, 2, 2), t:narrow(2, 1, 1):expand(2, 4)
    assert.equal(before, onn.memory().used)
    assert.same({ 4, 5, 6 }, row:totable())
    assert.same({ { 1, 4 }, { 2, 5 }, { 3, 6 } }, turned:totable())
    assert.same({ { 2, 3 }, { 5, 6 } }, part:totable())
    assert.same({ { 1, 1, 1, 1 }, { 4, 4, 4, 4 } }, wide:totable())
    t:select(1, 2):select(1, 1):fill(9)
    assert.same({ 1, 2, 3, 9, 5, 6 }, flat:totable())
    assert.same({ { 2, 3 }, { 5, 6 } }, part:contiguous():totable())
    assert.same({ 3, 2 }, t:view(-1, 2):shape())
    assert.same({ 2, 1, 3 }, turned:transpose(1, 2):view(2, 1, 3):shape())
    assert.is_false(turned:is_contiguous())
    assert.is_true(core.new("f32", { 4, 0, 3 }):is_contiguous())
    assert.equal(t, t:contiguous())
  end)

  it("refuse views that are none", function()
    local t = core.zeros("f32", { 2, 3 })
    assert.error_matches(function() t:view(4) end, "6 elements do not fill a shape of 4")
    assert.error_matches(function() t:view(-1, 4) end, "do not fill")
    assert.error_matches(function() t:view(-1, -1) end, "not valid")
    assert.error_matches(function() t:transpose(1, 2):view(6) end, "contiguous%(%) first")
    assert.error_matches(function() t:narrow(2, 2, 3) end, "3 elements from 2 do not lie in dimension 2 of size 3")
    assert.error_matches(function() t:narrow(3, 1, 1) end, "no dimension 3")
    assert.error_matches(function() t:select(1, 3) end, "do not lie")
    assert.error_matches(function() t:select(1, 0) end, "expected an integer")
    assert.error_matches(function() t:transpose(0, 1) end, "not both")
    assert.has_error(function() t:expand(2, 4) end)
    assert.has_error(function() t:copy(core.zeros("f32", { 4 })) end)
    assert.error_matches(function() t:transpose(1, 2):data() end, "contiguous")
  end)

  it("share a storage that the last of them frees", function()
    local before = used()
    local t = core.new("f32", { 1000 })
    local view = t:narrow(1, 10, 5):fill(3)
    local held = onn.memory().used - before
    assert(held >= 4000)
    t:free()
    assert.equal(before + held, onn.memory().used)
    assert.same({ 3, 3, 3, 3, 3 }, view:totable())
    view:free()
    assert.equal(before, onn.memory().used)
  end)

  it("are freed by hand more than once, and then refuse to be used", function()
    local t = core.zeros("f32", { 3 })
    t:free()
    t:free()
    assert.is_true(t:is_free())
    local live = core.zeros("f32", { 3 })
    for name, call in pairs {
      shape = function() return t:shape() end, totable = function() return t:totable() end, view = function() return t:view(3) end,
      fill = function() return t:fill(1) end, copy = function() return live:copy(t) end, data = function() return t:data() end,
      add = function() return require("onn.core.ops").binary(live, t, "add") end,
      linear = function() return require("onn.core.ops").linear(live, t) end,
    } do assert.error_matches(call, "this tensor has been freed", nil, nil, name) end
    assert.equal("tensor (freed)", tostring(t))
  end)

  it("are freed by the collector", function()
    local before = used()
    for _ = 1, 100 do core.new("f32", { 1000 }) end
    assert.equal(before, used())
  end)
end)

describe("the budget", function()
  after_each(function() core.set_budget(math.huge) end)

  it("is an error with both numbers, and leaves nothing behind", function()
    local before = used()
    core.trim()
    core.set_budget(before + 1e6)
    assert.equal(before + 1e6, onn.memory().budget)
    local ok, message = pcall(core.new, "f32", { 1000000 })
    assert.is_false(ok)
    local asked, held, budget = message:match "memory budget: (%d+) bytes asked, (%d+) of (%d+) in use"
    assert(tonumber(asked) >= 4e6 and tonumber(budget) == before + 1e6 and tonumber(held) >= before, message)
    assert.equal(before, used())
    local t = core.zeros("f32", { 1000 }) -- the next one works
    assert.equal(0, t:totable()[1000])
  end)

  it("is met by collecting garbage first", function()
    local before = used()
    core.trim()
    core.set_budget(before + 5e6)
    for _ = 1, 20 do core.new("f32", { 1000000 }) end -- each is garbage when the next is asked for
    assert(onn.memory().used <= before + 5e6)
  end)

  it("counts the scratch of operations, and lets an operation fail without a trace", function()
    local ops = require "onn.core.ops"
    local x, w = core.new("f32", { 300, 400 }):fill(1), core.new("f32", { 400, 400 }):fill(1)
    local before = used()
    core.trim()
    core.set_budget(before + 600000) -- room for y, not for the packed operands
    assert.error_matches(function() ops.linear(x, w) end, "memory budget")
    assert.equal(before, used())
    core.set_budget(math.huge)
    assert.equal(400, ops.linear(x, w):select(1, 300):totable()[400])
  end)

  it("knows its peak", function()
    local before = used()
    core.reset_peak()
    core.new("f32", { 250000 }):free()
    local memory = onn.memory()
    assert(memory.peak >= before + 1000000 and memory.peak < before + 1100000 and memory.used == before)
    core.reset_peak()
    assert.equal(before, onn.memory().peak)
    for _, bytes in ipairs { 0, -1, 0 / 0 } do assert.error_matches(function() core.set_budget(bytes) end, "more than 0") end
  end)
end)

describe("onn.scope", function()
  it("frees what was made inside, but for what is returned", function()
    local before = used()
    local inner
    local a, b = onn.scope(function(n)
      inner = core.new("f32", { n })
      local kept = core.zeros("f32", { 3 })
      return kept, { deep = { core.zeros("f32", { 2 }) }, other = "text" }
    end, 1000)
    assert.is_true(inner:is_free())
    assert.same({ 0, 0, 0 }, a:totable())
    assert.same({ 0, 0 }, b.deep[1]:totable())
    a:free()
    b.deep[1]:free()
    assert.equal(before, onn.memory().used)
  end)

  it("nests: what an inner one returns belongs to the outer", function()
    local from_inner
    onn.scope(function()
      from_inner = onn.scope(function() return core.zeros("f32", { 1 }) end)
      assert.is_false(from_inner:is_free())
    end)
    assert.is_true(from_inner:is_free())
  end)

  it("frees all and goes on when an error leaves it", function()
    local before, inner = used(), nil
    local ok, message = pcall(onn.scope, function()
      onn.scope(function()
        inner = core.zeros("f32", { 1000 })
        error "boom"
      end)
    end)
    assert.is_false(ok)
    assert.matches("boom", message)
    assert.is_true(inner:is_free())
    assert.equal(before, onn.memory().used)
    local outside = core.zeros("f32", { 1 }) -- no scope is left open
    onn.scope(function() end)
    assert.is_false(outside:is_free())
    assert.error_matches(core.scope_end, "no scope is open")
  end)

  it("keeps what onn.keep was given, through every scope", function()
    local kept, in_table
    onn.scope(function()
      onn.scope(function()
        kept = onn.keep(core.zeros("f32", { 4 }))
        in_table = onn.keep { m = core.zeros("f32", { 5 }) }
      end)
    end)
    assert.same({ 0, 0, 0, 0 }, kept:totable())
    assert.equal(5, in_table.m:numel())
  end)

  it("leaves outer tensors alone, and survives frees and collections inside", function()
    local outer = core.zeros("f32", { 2 })
    onn.scope(function()
      for k = 1, 100 do
        local t = core.zeros("f32", { 10 })
        if k % 3 == 0 then t:free() end
        if k % 10 == 0 then collectgarbage() end
      end
      return outer
    end)
    assert.same({ 0, 0 }, outer:totable())
  end)

  it("is nested up to its limit", function()
    local function deeper(n) return n == 0 and 0 or onn.scope(deeper, n - 1) end
    assert.equal(0, deeper(190))
    assert.error_matches(function() deeper(300) end, "nested deeper than 200")
    assert.error_matches(core.scope_end, "no scope is open")
  end)

  it("with tensors that live on when the program ends", function()
    local code = [[local core = require "onn.core.tensor"
      core.scope_begin() t = core.zeros("f32", { 100 }) v = t:narrow(1, 2, 3) os.exit(0)]]
    assert.same({ 0, "", "" }, { support.run { "-e", code } })
  end)
end)
