-- What works on tokens before and beside the products: embedding, rotary positions, dropout, random numbers, AdamW.
local core = require "onn.core.tensor"
local ops = require "onn.core.ops"
local reference = require "tests.kernels.reference"
local random, gapped, flat, near, floats, ints = reference.random, reference.gapped, reference.flat, reference.near, reference.floats,
  reference.ints

describe("embedding", function()
  it("takes rows of a table in any of its dtypes", function()
    for _, from in ipairs { "f32", "bf16", "f16" } do
      for _, to in ipairs(floats) do
        for _, width in ipairs { 1, 7, 17, 33, 65 } do
          local t = gapped(from == "f16" and "f32" or from, 9, width, 1):to(from)
          local y, want, values = ops.embedding(t, ints { 8, 0, 3, 3 }, to), {}, flat(t)
          for _, id in ipairs { 8, 0, 3, 3 } do for i = 1, width do want[#want + 1] = values[id * width + i] end end
          assert.equal(to, y:dtype())
          near(y, want, to == "f32" and 0 or nil, 0)
        end
      end
    end
    near(ops.embedding(random("f32", { 4, 3 }, 1), core.new("i32", { 0 }), "f32"), {})
  end)

  it("adds its gradient token by token", function()
    for _, dtype in ipairs(floats) do
      for _, width in ipairs { 1, 7, 17, 33, 65, 300 } do
        local dt, dy = core.new("f32", { 5, width }):fill(1), gapped(dtype, 4, width, 1)
        ops.embedding_backward(dt, dy, ints { 2, 4, 2, 0 })
        local want, g = {}, flat(dy)
        for i = 1, 5 * width do want[i] = 1 end
        for k, id in ipairs { 2, 4, 2, 0 } do for i = 1, width do
          want[id * width + i] = want[id * width + i] + g[(k - 1) * width + i] end end
        near(dt, want)
      end
    end
  end)

  it("refuses ids outside the table, and tables it cannot add to", function()
    local t = random("f32", { 4, 3 }, 1)
    for _, id in ipairs { -1, 4, -100 } do assert.error_matches(function() ops.embedding(t, ints { id }, "f32") end, "outside 0..3") end
    assert.error_matches(function() ops.embedding(core.new("f32", { 0, 3 }), ints { 0 }, "f32") end, "outside")
    assert.error_matches(function() ops.embedding(t, ints { 0 }, "f16") end, "expected f32 or bf16")
    assert.error_matches(function() ops.embedding(core.zeros("i8", { 4, 3 }), ints { 0 }, "f32") end, "expected f32, bf16 or f16")
    assert.error_matches(function() ops.embedding_backward(random("f32", { 3, 4 }, 1):transpose(1, 2), t, ints { 0, 1, 2, 3 }) end,
      "contiguous f32")
  end)
end)

describe("rotary positions", function()
  local function turn(x, heads, size, half, cos, sin, positions, interleaved, sign)
    local y = {}
    for i = 1, #x do y[i] = x[i] end
    for row = 0, #x / size - 1 do
      local at = positions[math.floor(row / heads) + 1]
      for i = 0, half - 1 do
        local a = row * size + (interleaved and 2 * i or i) + 1
        local b = interleaved and a + 1 or a + half
        local c, s = cos[at * half + i + 1], sign * sin[at * half + i + 1]
        y[a], y[b] = x[a] * c - x[b] * s, x[b] * c + x[a] * s
      end
    end
    return y
  end

  it("turn pairs, and back", function()
    for _, dtype in ipairs(floats) do
      for _, case in ipairs { { 2, 1 }, { 6, 3 }, { 64, 32 }, { 80, 40 }, { 96, 24 }, { 130, 65 }, { 8, 0 } } do
        local size, half = case[1], case[2]
        for _, interleaved in ipairs { false, true } do
          local x = random(dtype, { 3, 4, size + 3 }, 1):narrow(3, 2, size):narrow(2, 2, 2)
          local cos, sin = random("f32", { 7, half }, 2), random("f32", { 7, half }, 3)
          for _, sign in ipairs { 1, -1 } do
            near(ops.rope(x, cos, sin, ints { 6, 0, 3 }, interleaved, sign),
              turn(flat(x), 2, size, half, flat(cos), flat(sin), { 6, 0, 3 }, interleaved, sign))
          end
        end
      end
    end
  end)

  it("come back after the backward of their own angles", function()
    local inv = core.from_table { 1, 0.1, 0.01, 0.001 }
    local cos, sin = ops.rope_table(inv, 50)
    near(cos:select(1, 50), { math.cos(49), math.cos(4.9), math.cos(0.49), math.cos(0.049) }, nil, 1e-6)
    local x, at = random("f32", { 5, 3, 8 }, 1), ints { 0, 49, 7, 8, 1 }
    near(ops.rope(ops.rope(x, cos, sin, at, false, 1), cos, sin, at, false, -1), flat(x))
  end)

  it("refuse positions outside the table, and strided tables", function()
    local x, cos = random("f32", { 2, 1, 8 }, 1), random("f32", { 5, 4 }, 2)
    assert.error_matches(function() ops.rope(x, cos, cos, ints { 0, 5 }, false, 1) end, "outside 0..4")
    assert.error_matches(function() ops.rope(x, random("f32", { 4, 5 }, 2):transpose(1, 2), cos, ints { 0, 1 }, false, 1) end, "contiguous")
    assert.error_matches(function() ops.rope(x, random("f32", { 5, 5 }, 2), cos, ints { 0, 1 }, false, 1) end, "within a head")
  end)
end)

describe("random numbers", function()
  it("depend on seed, site and counter alone", function()
    local whole = ops.uniform(core.new("f32", { 1000 }), 7, "a", 0)
    for _, from in ipairs { 0, 1, 2, 3, 4, 501 } do
      local part = ops.uniform(core.new("f32", { 99 }), 7, "a", from)
      assert.equal(reference.bits(whole:narrow(1, from + 1, 99)), reference.bits(part))
    end
    assert.are_not.equal(reference.bits(whole), reference.bits(ops.uniform(core.new("f32", { 1000 }), 8, "a", 0)))
    assert.are_not.equal(reference.bits(whole), reference.bits(ops.uniform(core.new("f32", { 1000 }), 7, "b", 0)))
  end)

  it("have the moments and the range of their kind", function()
    local n = 100000
    local function moments(t)
      local values, mean, square, low, high = flat(t), 0, 0, math.huge, -math.huge
      for i = 1, n do mean, low, high = mean + values[i] / n, math.min(low, values[i]), math.max(high, values[i]) end
      for i = 1, n do square = square + (values[i] - mean) ^ 2 / n end
      return mean, square, low, high
    end
    local mean, square, low, high = moments(ops.uniform(core.new("f32", { n }), 1, "u", 0, -2, 4))
    assert(math.abs(mean - 1) < 0.02 and math.abs(square - 3) < 0.05 and low >= -2 and low < -1.99 and high < 4 and high > 3.99)
    mean, square, low, high = moments(ops.normal(core.new("f32", { n }), 1, "n", 0, 2))
    assert(math.abs(mean) < 0.03 and math.abs(square - 4) < 0.08 and low < -7 and high > 7 and high < 13)
  end)

  it("give the same bits for any threads, and want a plain tensor", function()
    reference.any_threads(function()
      return ops.uniform(core.new("f32", { 300, 301 }), 1, "t", 3), ops.normal(core.new("bf16", { 300, 301 }), 1, "t", 0)
    end)
    ops.uniform(core.new("f32", { 0 }), 1, "t", 0)
    assert.error_matches(function() ops.uniform(random("f32", { 4, 5 }, 1):transpose(1, 2), 1, "t", 0) end, "contiguous")
    assert.error_matches(function() ops.normal(random("f32", { 1 }, 1):expand(5), 1, "t", 0) end, "contiguous")
    assert.error_matches(function() ops.uniform(core.new("i8", { 5 }), 1, "t", 0) end, "expected f32 or bf16")
  end)
end)

describe("dropout", function()
  local function rows(values) return core.from_table(values, "i64") end

  it("keeps its share, scaled, and drops the same elements of a token wherever it lies", function()
    for _, dtype in ipairs(floats) do
      local x = core.new(dtype, { 200, 65 }):fill(1)
      local numbers = {}
      for i = 1, 200 do numbers[i] = 1000 + i end
      local y = ops.dropout(x, 0.25, 3, "d", 0, rows(numbers))
      local kept = 0
      for _, v in ipairs(flat(y)) do
        if v ~= 0 then
          kept = kept + 1
          assert(math.abs(v - 4 / 3) < 0.003)
        end
      end
      assert(math.abs(kept / 13000 - 0.75) < 0.02)
      local some = ops.dropout(x:narrow(1, 1, 3), 0.25, 3, "d", 0, rows { 1100, 1002, 1200 })
      assert.equal(reference.bits(y:narrow(1, 100, 1), y:narrow(1, 2, 1), y:narrow(1, 200, 1)),
        reference.bits(some:narrow(1, 1, 1), some:narrow(1, 2, 1), some:narrow(1, 3, 1)))
    end
  end)

  it("counts from the token's number times the width", function()
    local width = 33
    local u = ops.uniform(core.new("f32", { 10 * width }), 3, "d", 50)
    local y = ops.dropout(core.new("f32", { 2, width }):fill(1), 0.5, 3, "d", 50, rows { 9, 4 })
    for k, row in ipairs { 9, 4 } do
      for i = 1, width do
        local kept = flat(u)[row * width + i] >= 0.5
        assert.equal(kept and 2 or 0, y:totable()[k][i])
      end
    end
  end)

  it("of rate 0 changes nothing; other rates than [0, 1) are refused", function()
    local x = gapped("f32", 3, 17, 1)
    assert.equal(reference.bits(x), reference.bits(ops.dropout(x, 0, 1, "d", 0, rows { 0, 1, 2 })))
    for _, p in ipairs { 1, -0.1, 0 / 0 } do assert.error_matches(function() ops.dropout(x, p, 1, "d", 0, rows { 0, 1, 2 }) end,
      "dropout rate") end
    reference.any_threads(function() return ops.dropout(random("f32", { 3, 20000 }, 1), 0.3, 1, "d", 0, rows { 0, 1, 2 }) end)
  end)
end)

describe("AdamW", function()
  it("follows the formula, with a bf16 shadow", function()
    local lr, b1, b2, eps, decay, scale = 0.01, 0.9, 0.99, 1e-6, 0.1, 0.5
    for _, n in ipairs { 0, 1, 7, 17, 33, 65 } do
      local p, m, v = random("f32", { n }, 1), core.zeros("f32", { n }), core.zeros("f32", { n })
      local shadow = core.zeros("bf16", { n })
      local wp, wm, wv = flat(p), flat(m), flat(v)
      for step = 1, 5 do
        local g = random("f32", { n }, 10 + step)
        local fg = flat(g)
        ops.adamw(p, m, v, shadow, g, lr, b1, b2, eps, decay, scale, step)
        for i = 1, n do
          local d = fg[i] * scale
          wm[i], wv[i] = b1 * wm[i] + (1 - b1) * d, b2 * wv[i] + (1 - b2) * d * d
          wp[i] = wp[i] * (1 - lr * decay) - lr * (wm[i] / (1 - b1 ^ step)) / (math.sqrt(wv[i] / (1 - b2 ^ step)) + eps)
        end
      end
      near(p, wp, 4e-6, 1e-7)
      near(m, wm, 4e-6, 1e-8)
      near(v, wv, 4e-6, 1e-9)
      assert.equal(reference.bits(p:to("bf16")), reference.bits(shadow))
    end
  end)

  it("gives the same bits for any threads", function()
    local g = random("f32", { 100001 }, 3)
    reference.any_threads(function()
      local p, m, v = random("f32", { 100001 }, 1), random("f32", { 100001 }, 2), random("f32", { 100001 }, 4, 0, 1)
      ops.adamw(p, m, v, nil, g, 0.1, 0.9, 0.999, 1e-8, 0, 1, 3)
      return p, m, v
    end)
  end)
end)

describe("tokens", function()
  it("give the same bits for any threads", function()
    local ids = {}
    for i = 1, 500 do ids[i] = i * 7 % 50 end
    ids = ints(ids)
    local t, dy, x = random("bf16", { 50, 257 }, 1), random("bf16", { 500, 257 }, 2), random("bf16", { 500, 2, 64 }, 3)
    local angles = random("f32", { 50, 32 }, 4)
    reference.any_threads(function()
      local dt = core.zeros("f32", { 50, 257 })
      ops.embedding_backward(dt, dy, ids)
      return ops.embedding(t, ids, "f32"), dt, ops.rope(x, angles, angles, ids, true, 1), ops.rope(x, angles, angles, ids, false, -1)
    end)
  end)

  reference.every_instruction_set(it, pending)
end)
