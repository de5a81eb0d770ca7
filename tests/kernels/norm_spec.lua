local core = require "onn.core.tensor"
local ops = require "onn.core.ops"
local reference = require "tests.kernels.reference"
local random, gapped, flat, near, floats, ints = reference.random, reference.gapped, reference.flat, reference.near, reference.floats,
  reference.ints

local function rms_norm(x, w, eps, width)
  local y = {}
  for r = 0, #x / width - 1 do
    local square = 0
    for i = 1, width do square = square + x[r * width + i] ^ 2 end
    for i = 1, width do y[r * width + i] = x[r * width + i] / math.sqrt(square / width + eps) * w[i] end
  end
  return y
end

local function layer_norm(x, w, b, eps, width)
  local y = {}
  for r = 0, #x / width - 1 do
    local sum, square = 0, 0
    for i = 1, width do sum = sum + x[r * width + i] end
    for i = 1, width do square = square + (x[r * width + i] - sum / width) ^ 2 end
    for i = 1, width do y[r * width + i] = (x[r * width + i] - sum / width) / math.sqrt(square / width + eps) * w[i] + (b and b[i] or 0) end
  end
  return y
end

local function each(f)
  for _, width in ipairs { 1, 7, 17, 33, 65 } do
    for _, dtype in ipairs(floats) do f(width, dtype) end
  end
end

describe("norms", function()
  it("root mean square, forward and backward", function()
    each(function(width, dtype)
      for _, out in ipairs(floats) do
        local x, w, dy = gapped(dtype, 3, width, width, -2, 2), random("f32", { width }, 2, 0.5, 1.5), gapped(out, 3, width, 3)
        local y, rstd = ops.rms_norm(x, w, 1e-3, true, out)
        assert.equal(out, y:dtype())
        local fx, fw, fdy = flat(x), flat(w), flat(dy)
        near(y, rms_norm(fx, fw, 1e-3, width))
        local dw = core.new("f32", { width }):fill(3)
        local dx = ops.rms_norm_backward(dy, x, w, rstd, dw, ints { 0, 1, 3 })
        assert.equal(dtype, dx:dtype())
        near(dx, reference.gradient(function(v) return reference.dot(fdy, rms_norm(v, fw, 1e-3, width)) end, fx), nil, 1e-5)
        local want = reference.gradient(function(v) return reference.dot(fdy, rms_norm(fx, v, 1e-3, width)) end, fw)
        for i = 1, width do want[i] = want[i] + 3 end
        near(dw, want, 1e-6, 1e-5)
        near(ops.rms_norm_backward(dy, x, w, rstd), flat(dx), 0, 0)
      end
    end)
  end)

  it("layer, forward and backward", function()
    each(function(width, dtype)
      local x, w, b, dy = gapped(dtype, 3, width, width, -2, 2), random("f32", { width }, 2, 0.5, 1.5), random("f32", { width }, 4),
        gapped(dtype, 3, width, 3)
      local y, stats = ops.layer_norm(x, w, b, 1e-2)
      local fx, fw, fb, fdy = flat(x), flat(w), flat(b), flat(dy)
      near(y, layer_norm(fx, fw, fb, 1e-2, width), nil, 2e-6)
      near((ops.layer_norm(x, w, nil, 1e-2)), layer_norm(fx, fw, nil, 1e-2, width), nil, 2e-6)
      local dw, db = core.new("f32", { width }):fill(3), core.new("f32", { width }):fill(-1)
      local dx = ops.layer_norm_backward(dy, x, w, stats, dw, db, ints { 0, 1, 3 })
      near(dx, reference.gradient(function(v) return reference.dot(fdy, layer_norm(v, fw, fb, 1e-2, width)) end, fx), nil, 2e-5)
      local want = reference.gradient(function(v) return reference.dot(fdy, layer_norm(fx, v, fb, 1e-2, width)) end, fw)
      for i = 1, width do want[i] = want[i] + 3 end
      near(dw, want, 1e-6, 1e-5)
      want = reference.gradient(function(v) return reference.dot(fdy, layer_norm(fx, fw, v, 1e-2, width)) end, fb)
      for i = 1, width do want[i] = want[i] - 1 end
      near(db, want, 1e-6, 1e-5)
    end)
  end)

  it("give their result in another dtype", function()
    local x, w, b = random("f32", { 3, 33 }, 1), random("f32", { 33 }, 2), random("f32", { 33 }, 3)
    local y, stats = ops.layer_norm(x, w, b, 1e-5, "bf16")
    assert.equal("bf16", y:dtype())
    assert.equal(reference.bits((ops.layer_norm(x, w, b, 1e-5)):to "bf16"), reference.bits(y))
    local dy = random("bf16", { 3, 33 }, 4)
    near(ops.layer_norm_backward(dy, x, w, stats), flat(ops.layer_norm_backward(dy:to "f32", x, w, stats)), 0, 0)
  end)

  it("without parameters", function()
    local x, one, dy = random("f32", { 3, 33 }, 1), core.new("f32", { 33 }):fill(1), random("f32", { 3, 33 }, 2)
    local y, stats = ops.layer_norm(x, nil, nil, 1e-5)
    assert.equal(reference.bits((ops.layer_norm(x, one, nil, 1e-5))), reference.bits(y))
    assert.equal(reference.bits(ops.layer_norm_backward(dy, x, one, stats)), reference.bits(ops.layer_norm_backward(dy, x, nil, stats)))
    local r, rstd = ops.rms_norm(x, nil, 1e-5, true)
    assert.equal(reference.bits((ops.rms_norm(x, one, 1e-5))), reference.bits(r))
    assert.equal(reference.bits(ops.rms_norm_backward(dy, x, one, rstd)), reference.bits(ops.rms_norm_backward(dy, x, nil, rstd)))
  end)

  it("of heads that each have their own weight are those of each head", function()
    for _, dtype in ipairs(floats) do
      local tokens, heads, size = 150, 3, 17
      local x, dy = random(dtype, { tokens, heads, size }, 1), random(dtype, { tokens, heads, size }, 2)
      local w, b = random("f32", { heads, size }, 3), random("f32", { heads, size }, 4)
      local starts = ints { 0, 20 * heads, tokens * heads }
      local function zeros() return core.zeros("f32", { heads, size }) end
      local y, rstd = ops.rms_norm(x, w, 1e-5, true)
      local l, stats = ops.layer_norm(x, w, b, 1e-5)
      local dw, dw2, db = zeros(), zeros(), zeros()
      local dx, dx2 = ops.rms_norm_backward(dy, x, w, rstd, dw, starts), ops.layer_norm_backward(dy, x, w, stats, dw2, db, starts)
      for h = 1, heads do
        local function cut(t) return t:select(2, h) end
        local function of(t) return t:select(1, h):contiguous() end
        local y1, rstd1 = ops.rms_norm(cut(x), of(w), 1e-5, true)
        local l1, stats1 = ops.layer_norm(cut(x), of(w), of(b), 1e-5)
        assert.equal(reference.bits(cut(y), cut(l)), reference.bits(y1, l1))
        local g, g2, gb = core.zeros("f32", { size }), core.zeros("f32", { size }), core.zeros("f32", { size })
        assert.equal(reference.bits(cut(dx), cut(dx2)), reference.bits(ops.rms_norm_backward(cut(dy), cut(x), of(w), rstd1, g),
          (ops.layer_norm_backward(cut(dy), cut(x), of(w), stats1, g2, gb))))
        near(of(dw), flat(g), 1e-5, 1e-5)
        near(of(dw2), flat(g2), 1e-5, 1e-5)
        near(of(db), flat(gb), 1e-5, 1e-5)
      end
    end
  end)

  it("a mean far from 0 does not drown the variance", function()
    local x, one = random("f32", { 3, 65 }, 1), core.new("f32", { 65 }):fill(1)
    local far = ops.affine(x, 1, 1000)
    near((ops.layer_norm(far, one, nil, 1e-5)), layer_norm(flat(far), flat(one), nil, 1e-5, 65), 1e-4, 1e-3)
  end)

  it("NaN stays in its row", function()
    local x, w = random("f32", { 3, 17 }, 1), random("f32", { 17 }, 2)
    x:select(1, 2):narrow(1, 5, 1):fill(0 / 0)
    for _, y in ipairs { (ops.rms_norm(x, w, 1e-5)), (ops.layer_norm(x, w, nil, 1e-5)) } do
      local values = y:totable()
      for i = 1, 17 do assert(values[1][i] == values[1][i] and values[2][i] ~= values[2][i] and values[3][i] == values[3][i]) end
    end
  end)

  it("of no rows", function()
    local x, w, dw = core.new("f32", { 0, 9 }), random("f32", { 9 }, 1), core.new("f32", { 9 }):fill(1)
    local _, rstd = ops.rms_norm(x, w, 1e-5, true)
    ops.rms_norm_backward(x, x, w, rstd, dw)
    near(dw, 1)
  end)

  it("give the same bits for any threads and any number of rows", function()
    for _, dtype in ipairs(floats) do
      local x, dy, w = random(dtype, { 300, 257 }, 1), random(dtype, { 300, 257 }, 2), random("f32", { 257 }, 3)
      local starts = ints { 0, 200, 300 }
      local y = reference.any_threads(function()
        local dw, dw2, db = core.zeros("f32", { 257 }), core.zeros("f32", { 257 }), core.zeros("f32", { 257 })
        local r, rstd = ops.rms_norm(x, w, 1e-5, true)
        local l, stats = ops.layer_norm(x, w, w, 1e-5)
        return r, rstd, l, stats, ops.rms_norm_backward(dy, x, w, rstd, dw, starts), dw,
          ops.layer_norm_backward(dy, x, w, stats, dw2, db, starts), dw2, db
      end)
      assert.equal(reference.bits(y:narrow(1, 200, 1)), reference.bits((ops.rms_norm(x:narrow(1, 200, 1), w, 1e-5))))
    end
  end)

  it("a packed sequence's weight gradient is the sum of its own tiles", function()
    local x, dy, w = random("f32", { 300, 33 }, 1), random("f32", { 300, 33 }, 2), random("f32", { 33 }, 3)
    local _, rstd = ops.rms_norm(x, w, 1e-5, true)
    local packed, alone = core.zeros("f32", { 33 }), core.zeros("f32", { 33 })
    ops.rms_norm_backward(dy, x, w, rstd, packed, ints { 0, 130, 300 })
    for _, part in ipairs { { 1, 130 }, { 131, 170 } } do
      local function cut(t) return t:narrow(1, part[1], part[2]) end
      ops.rms_norm_backward(cut(dy), cut(x), w, cut(rstd):contiguous(), alone)
    end
    assert.equal(reference.bits(packed), reference.bits(alone))
  end)

  it("leave nothing half done when memory is short", function()
    local x, dy, w = random("f32", { 3000, 33 }, 1), random("f32", { 3000, 33 }, 2), random("f32", { 33 }, 3)
    local _, rstd = ops.rms_norm(x, w, 1e-5, true)
    assert(reference.nothing_half_done(function() return { core.new("f32", { 33 }):fill(1) } end,
      function(dw) ops.rms_norm_backward(dy, x, w, rstd, dw):free() end) > 0)
  end)

  it("refuse what does not fit", function()
    local x, w = random("f32", { 3, 9 }, 1), random("f32", { 9 }, 1)
    assert.error_matches(function() ops.rms_norm(x, w, 1e-5, false, "i8") end, "expected f32 or bf16, got i8")
    assert.error_matches(function() ops.rms_norm(x, random("f32", { 8 }, 1), 1e-5) end, "expected f32 of 9")
    assert.error_matches(function() ops.layer_norm(x, w, random("bf16", { 9 }, 1), 1e-5) end, "expected f32 of 9")
  end)

  reference.every_instruction_set(it, pending)
end)
