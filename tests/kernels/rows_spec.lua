local core = require "onn.core.tensor"
local ops = require "onn.core.ops"
local reference = require "tests.kernels.reference"
local random, gapped, flat, near, floats, ints = reference.random, reference.gapped, reference.flat, reference.near, reference.floats,
  reference.ints
local huge, nan = math.huge, 0 / 0

-- f(row as a table) -> one number, or a table of the row's width, for every row of a tensor
local function by_rows(x, f, ...)
  local more, values, width, y = { ... }, flat(x), x:size(-1), {}
  for r = 0, x:numel() / math.max(width, 1) - 1 do
    local row = {}
    for i = 1, width do row[i] = values[r * width + i] end
    local got = f(row, r + 1, unpack(more))
    for _, v in ipairs(type(got) == "table" and got or { got }) do y[#y + 1] = v end
  end
  return y
end

local function total(row)
  local s = 0
  for _, v in ipairs(row) do s = s + v end
  return s
end

local function log_sum_exp(row)
  local most, s = math.max(unpack(row)), 0
  for _, v in ipairs(row) do s = s + math.exp(v - most) end
  return most + math.log(s)
end

local function softmax(row)
  local l, y = log_sum_exp(row), {}
  for i, v in ipairs(row) do y[i] = math.exp(v - l) end
  return y
end

describe("rows", function()
  it("are summed, averaged and searched", function()
    for _, dtype in ipairs(floats) do
      for _, n in ipairs { 1, 7, 17, 33, 65, 1000 } do
        local x = gapped(dtype, 5, n, n)
        near(ops.reduce(x, "sum"), by_rows(x, total), nil, 1e-7 * n)
        near(ops.reduce(x, "mean"), by_rows(x, function(row) return total(row) / #row end), nil, 1e-7)
        near(ops.reduce(x, "max"), by_rows(x, function(row) return math.max(unpack(row)) end), 0, 0)
        assert.same(by_rows(x, function(row)
          local best = 1
          for i, v in ipairs(row) do if v > row[best] then best = i end end
          return best - 1
        end), ops.reduce(x, "argmax"):totable())
      end
    end
    assert.same({ 0 }, ops.reduce(core.from_table { { 2, 2, 2 } }, "argmax"):totable())
    assert.same({}, ops.reduce(core.new("f32", { 0, 3 }), "sum"):totable())
    assert.has_error(function() ops.reduce(core.new("f32", { 3, 0 }), "sum") end)
  end)

  it("carry NaN into their maximum, wherever it stands; the index passes it over", function()
    for n = 1, 40 do
      for at = 1, n do
        local x = core.zeros("f32", { n })
        x:narrow(1, at, 1):fill(nan)
        local most = ops.reduce(x, "max"):item()
        assert(most ~= most)
      end
    end
    assert.equal(2, ops.reduce(core.from_table { nan, 1, 5, nan, 3 }, "argmax"):item())
    assert.equal(-huge, ops.reduce(core.from_table { -huge, -huge }, "max"):item())
  end)

  it("are added up over tokens, tile by tile", function()
    for _, dtype in ipairs(floats) do
      for _, n in ipairs { 1, 17, 65 } do
        local x, starts = gapped(dtype, 300, n, n), ints { 0, 5, 5, 170, 300 }
        local y = core.new("f32", { n }):fill(2)
        ops.sum_rows(y, x, starts)
        near(y, by_rows(x:transpose(1, 2):contiguous(), function(row) return 2 + total(row) end), 1e-6, 2e-5)
      end
    end
    local y = core.new("f32", { 3 }):fill(1)
    ops.sum_rows(y, core.new("f32", { 0, 3 }))
    near(y, 1)
  end)

  it("have a total in double, and a count of what is not finite", function()
    for _, dtype in ipairs(floats) do
      for _, n in ipairs { 0, 1, 17, 9001 } do
        local x = gapped(dtype, 3, n, n)
        local sum, bad = ops.total(x, false)
        assert(math.abs(sum - total(flat(x))) < 1e-8 and bad == 0)
        sum = ops.total(x, true)
        assert(math.abs(sum - reference.dot(flat(x), flat(x))) < 1e-8)
      end
      local x = random(dtype, { 100, 65 }, 1)
      x:select(1, 3):narrow(1, 7, 3):fill(nan)
      x:select(1, 99):narrow(1, 65, 1):fill(-huge)
      x:select(1, 1):narrow(1, 1, 1):fill(huge)
      local _, bad = ops.total(x, true)
      assert.equal(5, bad)
    end
    local big = core.new("f32", { 3 }):fill(3e38)
    local sum, bad = ops.total(big, true)
    assert(bad == 0 and math.abs(sum / (3 * 9e76) - 1) < 1e-6) -- no overflow: squares are in double
  end)
end)

describe("softmax", function()
  it("and its backward", function()
    for _, dtype in ipairs(floats) do
      for _, n in ipairs { 1, 7, 17, 33, 65 } do
        local x, dy = gapped(dtype, 3, n, n, -8, 8), gapped(dtype, 3, n, n + 1)
        local y = ops.softmax(x)
        near(y, by_rows(x, softmax), dtype == "f32" and 3e-6, 1e-7)
        local g = flat(dy)
        near(ops.softmax_backward(dy, y), by_rows(y, function(row, r)
          local d = {}
          for i = 1, n do d[i] = g[(r - 1) * n + i] end
          local dot = reference.dot(d, row)
          for i = 1, n do d[i] = row[i] * (d[i] - dot) end
          return d
        end), nil, 1e-6)
      end
    end
  end)

  it("of large numbers, -inf and NaN", function()
    near(ops.softmax(core.from_table { { 3e38, 3e38, -3e38 } }), { 0.5, 0.5, 0 })
    near(ops.softmax(core.from_table { { -3e38, -huge, -3e38 } }), { 0.5, 0, 0.5 })
    near(ops.softmax(core.from_table { { 1000, 0, -1000 } }), { 1, 0, 0 })
    for n = 1, 40 do
      local x = core.zeros("f32", { n })
      x:narrow(1, n, 1):fill(nan)
      for _, v in ipairs(ops.softmax(x):totable()) do assert(v ~= v) end
    end
    for _, v in ipairs(ops.softmax(core.from_table { -huge, -huge }):totable()) do assert(v ~= v) end
    near(ops.softmax(core.new("f32", { 0, 5 })), {})
  end)
end)

describe("cross entropy", function()
  it("and its gradient", function()
    for _, dtype in ipairs(floats) do
      for _, n in ipairs { 1, 7, 17, 33, 65 } do
        local x, labels = gapped(dtype, 4, n, n, -8, 8), ints { 0, n - 1, -100, math.floor(n / 2) }
        local want = labels:totable()
        local nll, dx = ops.cross_entropy(x, labels, 0.5, true)
        near(nll, by_rows(x, function(row, r) return want[r] < 0 and 0 or log_sum_exp(row) - row[want[r] + 1] end), 2e-6, 1e-6)
        near(dx, by_rows(x, function(row, r)
          local p = softmax(row)
          for i = 1, n do p[i] = want[r] < 0 and 0 or 0.5 * (p[i] - (want[r] + 1 == i and 1 or 0)) end
          return p
        end), dtype == "f32" and 4e-6, 2e-7)
      end
    end
  end)

  it("of large numbers, -inf and NaN", function()
    local nll, dx = ops.cross_entropy(core.from_table { { 3e38, 0, -3e38 }, { 5, -huge, -huge }, { 1e4, 0, 0 } }, ints { 0, 0, 1 }, 1, true)
    near(nll, { 0, 0, 1e4 })
    near(dx, { 0, 0, 0, 0, 0, 0, 1, -1, 0 })
    nll, dx = ops.cross_entropy(core.from_table { { nan, 1, 2 }, { nan, huge, 1 }, { -huge, 0, 0 } }, ints { 1, -100, 0 }, 1, true)
    local l, d = nll:totable(), dx:totable()
    assert(l[1] ~= l[1] and d[1][1] ~= d[1][1] and d[1][3] ~= d[1][3])
    assert(l[2] == 0 and l[3] == huge)
    assert.same({ 0, 0, 0 }, d[2]) -- a row without a label has no gradient, whatever stands in it
    local _, bad = ops.total(nll, false)
    assert.equal(2, bad)
  end)

  it("refuses labels that are no class", function()
    for _, label in ipairs { 3, -1, -99 } do
      assert.error_matches(function() ops.cross_entropy(random("f32", { 1, 3 }, 1), ints { label }, 1, true) end, "outside 0..2")
    end
    assert.error_matches(function() ops.cross_entropy(random("f32", { 1, 0 }, 1), ints { 0 }, 1, true) end, "outside")
  end)
end)

describe("rows", function()
  it("give the same bits for any threads", function()
    local x, dy, starts = random("f32", { 300, 700 }, 1), random("f32", { 300, 700 }, 2), ints { 0, 100, 300 }
    local labels = {}
    for i = 1, 300 do labels[i] = i % 7 == 0 and -100 or i end
    labels = ints(labels)
    reference.any_threads(function()
      local y = ops.softmax(x)
      local sum = core.zeros("f32", { 700 })
      ops.sum_rows(sum, x, starts)
      local nll, dx = ops.cross_entropy(x, labels, 1, true)
      local square, bad = ops.total(x, true)
      return y, ops.softmax_backward(dy, y), sum, nll, dx, ops.reduce(x, "sum"),
        core.from_data(("%.17g %d"):format(square, bad), "u8", { #("%.17g %d"):format(square, bad) })
    end)
  end)

  it("leave nothing half done when memory is short", function()
    local x = random("f32", { 3000, 33 }, 1)
    assert(reference.nothing_half_done(function() return { core.new("f32", { 33 }):fill(1) } end, function(y) ops.sum_rows(y, x) end) > 0)
  end)

  reference.every_instruction_set(it, pending)
end)
