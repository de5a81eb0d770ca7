local core = require "onn.core.tensor"
local ops = require "onn.core.ops"
local reference = require "tests.kernels.reference"
local random, flat, near = reference.random, reference.flat, reference.near
local floor = math.floor

-- Calls f(y's index, x's index, w's index) for every product of a convolution, indices from 1.
local function products(x, w, y, o, f)
  local xs, ws, ys = x:shape(), w:shape(), y:shape()
  local out_group = ws[1] / o.groups
  for n = 0, ys[1] - 1 do
    for c = 0, ys[2] - 1 do
      for i = 0, ys[3] - 1 do
        for j = 0, ys[4] - 1 do
          local at = ((n * ys[2] + c) * ys[3] + i) * ys[4] + j + 1
          for k = 0, ws[2] - 1 do
            for a = 0, ws[3] - 1 do
              for b = 0, ws[4] - 1 do
                local r, s = i * o.stride[1] - o.padding[1] + a * o.dilation[1], j * o.stride[2] - o.padding[2] + b * o.dilation[2]
                if r >= 0 and r < xs[3] and s >= 0 and s < xs[4] then
                  f(at, ((n * xs[2] + floor(c / out_group) * ws[2] + k) * xs[3] + r) * xs[4] + s + 1,
                    ((c * ws[2] + k) * ws[3] + a) * ws[4] + b + 1)
                end
              end
            end
          end
        end
      end
    end
  end
end

local function filled(n, value)
  local t = {}
  for i = 1, n do t[i] = value end
  return t
end

-- n, channels, height, width, out, kernel height, kernel width, groups, stride, padding (top, left, bottom, right), dilation
local convolutions = {
  { 1, 1, 1, 1, 1, 1, 1, 1, { 1, 1 }, { 0, 0, 0, 0 }, { 1, 1 } },
  { 2, 3, 7, 9, 5, 3, 3, 1, { 1, 1 }, { 1, 1, 1, 1 }, { 1, 1 } },
  { 3, 4, 17, 13, 6, 3, 5, 2, { 2, 1 }, { 1, 2, 0, 1 }, { 1, 2 } },
  { 2, 17, 5, 5, 130, 1, 1, 1, { 1, 1 }, { 0, 0, 0, 0 }, { 1, 1 } },
  { 2, 70, 6, 6, 65, 3, 3, 1, { 2, 2 }, { 1, 1, 1, 1 }, { 1, 1 } },
  { 1, 96, 5, 7, 96, 3, 3, 96, { 1, 1 }, { 1, 1, 1, 1 }, { 1, 1 } },
  { 2, 66, 5, 4, 132, 3, 3, 66, { 1, 1 }, { 1, 1, 1, 1 }, { 1, 1 } },
  { 2, 2, 5, 5, 3, 2, 2, 1, { 3, 3 }, { 5, 5, 5, 5 }, { 3, 3 } },
  { 0, 3, 7, 9, 5, 3, 3, 1, { 1, 1 }, { 1, 1, 1, 1 }, { 1, 1 } },
}

local function convolution(c)
  local o = { stride = c[9], padding = c[10], dilation = c[11], groups = c[8] }
  local x, w, bias = random("f32", { c[1], c[2], c[3], c[4] }, 1), random("f32", { c[5], c[2] / c[8], c[6], c[7] }, 2),
    random("f32", { c[5] }, 3)
  return x, w, bias, o
end

describe("convolution", function()
  it("forward and backward", function()
    for k, c in ipairs(convolutions) do
      local x, w, bias, o = convolution(c)
      local y = ops.conv(x, w, bias, o)
      local dy = random("f32", y:shape(), 4)
      local fx, fw, fb, fdy = flat(x), flat(w), flat(bias), flat(dy)
      local plane = y:size(3) * y:size(4)
      local want, wx, ww, wb = {}, filled(#fx, 0), filled(#fw, 0.5), filled(#fb, 0.25)
      for i = 1, #fdy do
        local channel = floor((i - 1) / plane) % #fb + 1
        want[i], wb[channel] = fb[channel], wb[channel] + fdy[i]
      end
      products(x, w, y, o, function(at, from, weight)
        want[at] = want[at] + fx[from] * fw[weight]
        wx[from] = wx[from] + fdy[at] * fw[weight]
        ww[weight] = ww[weight] + fdy[at] * fx[from]
      end)
      local dw, db = core.new("f32", w:shape()):fill(0.5), core.new("f32", { c[5] }):fill(0.25)
      local dx = ops.conv_backward(dy, x, w, o, true, dw, db)
      near(y, want, 1e-5, 2e-5, "y of case " .. k)
      near(dx, wx, 1e-5, 2e-5, "dx of case " .. k)
      near(dw, ww, 1e-5, 2e-5, "dw of case " .. k)
      near(db, wb, 1e-5, 2e-5, "dbias of case " .. k)
      assert.is_nil(ops.conv_backward(dy, x, w, o, false))
      ops.conv_backward(dy, x, w, o, false, nil, db)
      local without = flat(ops.conv(x, w, nil, o))
      for i = 1, #without do without[i] = without[i] + fb[floor((i - 1) / plane) % #fb + 1] end
      near(y, without, 1e-5, 1e-5)
    end
  end)

  it("reads its options as numbers, pairs and fours", function()
    local x, w = random("f32", { 1, 2, 9, 9 }, 1), random("f32", { 2, 2, 3, 3 }, 2)
    assert.same({ 1, 2, 7, 7 }, ops.conv(x, w, nil, {}):shape())
    assert.same({ 1, 2, 5, 5 }, ops.conv(x, w, nil, { stride = 2, padding = 1 }):shape())
    assert.same({ 1, 2, 5, 9 }, ops.conv(x, w, nil, { stride = { 2, 1 }, padding = { 1, 1 } }):shape())
    assert.same({ 1, 2, 8, 6 }, ops.conv(x, w, nil, { padding = { 1, 0, 0, 1 }, dilation = { 1, 2 } }):shape())
  end)

  it("without channels is its bias", function()
    local y = ops.conv(core.new("f32", { 2, 0, 4, 4 }), core.new("f32", { 3, 0, 1, 1 }), core.from_table { 1, 2, 3 }, {})
    near(y:select(1, 2), flat(core.from_table({ { { 1 } }, { { 2 } }, { { 3 } } }):expand(3, 4, 4)), 0, 0)
  end)

  it("gives an image the same bits alone and among others, whatever the threads", function()
    for _, c in ipairs { { 5, 20, 14, 14, 130, 3, 3, 1, { 1, 1 }, { 1, 1, 1, 1 }, { 1, 1 } },
      { 5, 96, 14, 14, 96, 3, 3, 32, { 2, 2 }, { 1, 1, 1, 1 }, { 1, 1 } },
      { 5, 33, 7, 7, 70, 3, 3, 1, { 2, 1 }, { 1, 1, 0, 1 }, { 1, 1 } }, { 5, 20, 2, 2, 9, 2, 2, 1, { 1, 1 }, { 1, 1, 1, 1 }, { 2, 1 } } } do
      local x, w, bias, o = convolution(c)
      o.by_image = true
      local dy = random("f32", ops.conv(x, w, bias, o):shape(), 4)
      local y, dx = reference.any_threads(function()
        local dw, db = core.zeros("f32", w:shape()), core.zeros("f32", { c[5] })
        local dx = ops.conv_backward(dy, x, w, o, true, dw, db)
        return ops.conv(x, w, bias, o), dx, dw, db
      end)
      local dw, db, dw2, db2 = core.zeros("f32", w:shape()), core.zeros("f32", { c[5] }), core.zeros("f32", w:shape()),
        core.zeros("f32", { c[5] })
      ops.conv_backward(dy, x, w, o, false, dw, db)
      for n = 1, 5 do
        local function part(t) return t:narrow(1, n, 1) end
        assert.equal(reference.bits(part(y)), reference.bits(ops.conv(part(x), w, bias, o)))
        assert.equal(reference.bits(part(dx)), reference.bits(ops.conv_backward(part(dy), part(x), w, o, true, dw2)))
      end
      assert.equal(reference.bits(dw), reference.bits(dw2))
      near(db2, 0)
    end
  end)

  it("keeps a bounded number of primitives", function()
    for n = 1, 300 do
      local x, w = random("f32", { 1, 1, 4, n }, 1), random("f32", { 1, 1, 3, 1 }, 2)
      local y = ops.conv(x, w, nil, {})
      if n == 300 then near(y:select(3, 1), flat((ops.conv(x:narrow(3, 1, 3):contiguous(), w, nil, {})))) end
      for _, t in ipairs { x, w, y } do t:free() end
    end
    local x, w, bias, o = convolution(convolutions[2])
    assert.equal(reference.bits(ops.conv(x, w, bias, o)), reference.bits(ops.conv(x, w, bias, o)))
  end)

  it("leaves nothing half done when memory is short", function()
    local x, w, _, o = convolution { 2, 20, 14, 14, 70, 3, 3, 1, { 1, 1 }, { 1, 1, 1, 1 }, { 1, 1 } }
    local dy = random("f32", { 2, 70, 14, 14 }, 4)
    assert(reference.nothing_half_done(function() return { core.zeros("f32", w:shape()), core.zeros("f32", { 70 }) } end,
      function(dw, db) ops.conv_backward(dy, x, w, o, false, dw, db) end) > 0)
  end)

  it("refuses what does not fit", function()
    local x, w = random("f32", { 1, 4, 5, 5 }, 1), random("f32", { 6, 2, 3, 3 }, 2)
    assert.error_matches(function() ops.conv(x, w, nil, {}) end, "4 channels in and 6 out, a weight for 2 in 1 groups")
    assert.error_matches(function() ops.conv(x, random("f32", { 5, 2, 3, 3 }, 2), nil, { groups = 2 }) end, "in 2 groups")
    assert.error_matches(function() ops.conv(x, random("f32", { 6, 4, 6, 3 }, 2), nil, {}) end, "window of 6 does not fit an image of 5")
    assert.error_matches(function() ops.conv(x, w, nil, { groups = 2, stride = 0 }) end, "integer")
    assert.error_matches(function() ops.conv(x:to "bf16", w, nil, { groups = 2 }) end, "contiguous f32")
    local y = ops.conv(x, w, nil, { groups = 2 })
    assert.error_matches(function() ops.conv_backward(y, x, w, { groups = 2, padding = 1 }, true) end, "expected %(1, 6, 5, 5%)")
    assert.error_matches(function() ops.conv_backward(y, x, w, { groups = 2 }, true, core.zeros("f32", { 6, 2, 3, 2 })) end,
      "expected f32 of 108")
  end)
end)

describe("pooling", function()
  local cases = {
    { kernel = { 1, 1 }, stride = { 1, 1 }, padding = { 0, 0, 0, 0 } }, { kernel = { 2, 2 }, stride = { 2, 2 }, padding = { 0, 0, 0, 0 } },
    { kernel = { 3, 2 }, stride = { 2, 1 }, padding = { 1, 0, 2, 1 } }, { kernel = { 3, 3 }, stride = { 4, 4 }, padding = { 2, 2, 0, 0 } },
    { kernel = { 7, 9 }, stride = { 1, 1 }, padding = { 0, 0, 0, 0 } },
  }

  -- f(y's index, {x's indices}, elements of the window with the padding that was asked for)
  local function windows(x, y, o, f)
    local xs, ys, at = x:shape(), y:shape(), 0
    for plane = 0, xs[1] * xs[2] - 1 do
      for i = 0, ys[3] - 1 do
        for j = 0, ys[4] - 1 do
          local from, padded = {}, 0
          for a = 0, o.kernel[1] - 1 do
            for b = 0, o.kernel[2] - 1 do
              local r, s = i * o.stride[1] - o.padding[1] + a, j * o.stride[2] - o.padding[2] + b
              if r >= 0 and r < xs[3] and s >= 0 and s < xs[4] then from[#from + 1] = (plane * xs[3] + r) * xs[4] + s + 1 end
              if r < xs[3] + o.padding[3] and s < xs[4] + o.padding[4] then padded = padded + 1 end
            end
          end
          at = at + 1
          f(at, from, padded)
        end
      end
    end
  end

  local function check(o, shape)
    local x = random("f32", shape, 1)
    local fx = flat(x)
    local y, index = ops.pool(x, o, true)
    local dy = random("f32", y:shape(), 2)
    local fdy, want, wx = flat(dy), {}, filled(#fx, 0)
    windows(x, y, o, function(at, from, padded)
      if o.average then
        local sum, count = 0, o.count_padding and padded or #from
        for _, i in ipairs(from) do
          sum = sum + fx[i]
          wx[i] = wx[i] + fdy[at] / count
        end
        want[at] = sum / count
      else
        local best = from[1]
        for _, i in ipairs(from) do if fx[i] > fx[best] then best = i end end
        want[at], wx[best] = fx[best], wx[best] + fdy[at]
      end
    end)
    near(y, want, 2e-6, 1e-7)
    near(ops.pool_backward(dy, index, x, o), wx, 2e-6, 1e-6)
    assert.equal(reference.bits(y), reference.bits((ops.pool(x, o))))
  end

  it("of maxima and averages", function()
    for _, o in ipairs(cases) do
      for _, shape in ipairs { { 2, 3, 7, 9 }, { 1, 1, 17, 13 }, { 0, 2, 7, 9 } } do
        for _, kind in ipairs { {}, { true }, { true, true } } do
          o.average, o.count_padding = kind[1], kind[2]
          check(o, shape)
        end
      end
    end
  end)

  it("passes NaN on, and takes the first of equals", function()
    local y, index = ops.pool(core.from_table { { { { 1, 0 / 0, 5, 5, -math.huge, -math.huge } } } },
      { kernel = { 1, 2 }, stride = { 1, 2 } }, true)
    local values = flat(y)
    assert(values[1] ~= values[1] and values[2] == 5 and values[3] == -math.huge)
    assert.same({ 1, 0, 0 }, flat(index))
  end)

  it("gives the same bits for any threads", function()
    local x = random("f32", { 4, 30, 30, 30 }, 1)
    local dy = random("f32", { 4, 30, 15, 15 }, 2)
    reference.any_threads(function()
      local y, index = ops.pool(x, { kernel = 3, stride = 2, padding = 1 }, true)
      return y, index, ops.pool_backward(dy, index, x, { kernel = 3, stride = 2, padding = 1 }),
        ops.pool_backward(dy, nil, x, { kernel = 3, stride = 2, padding = 1, average = true })
    end)
  end)

  it("refuses what does not fit, and survives an index that is not its own", function()
    local x = random("f32", { 1, 1, 5, 5 }, 1)
    assert.error_matches(function() ops.pool(x, { kernel = 2, padding = 2 }) end, "must not lie in the padding alone")
    assert.error_matches(function() ops.pool(x, { kernel = 6 }) end, "does not fit")
    local y, index = ops.pool(x, { kernel = 3, padding = 1 }, true)
    assert.error_matches(function() ops.pool_backward(y, nil, x, { kernel = 3, padding = 1 }) end, "index of its forward")
    assert.error_matches(function() ops.pool_backward(y, index, x, { kernel = 3 }) end, "expected %(1, 1, 3, 3%)")
    for _, wrong in ipairs { 1e9, -1, 9 } do near(ops.pool_backward(y, index:fill(wrong), x, { kernel = 3, padding = 1 }), 0, 0, 0) end
  end)

  reference.every_instruction_set(it, pending)
end)
