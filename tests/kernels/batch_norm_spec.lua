local autograd = require "onn.autograd"
local core = require "onn.core.tensor"
local ops = require "onn.core.ops"
local recorded = require "onn.ops"
local reference = require "tests.kernels.reference"
local tensor = require "onn.tensor"
local random, flat, near = reference.random, reference.flat, reference.near

-- Batch norm in double: y, mean and variance (with n) of each channel, and the gradients for dy.
local function plain(x, w, b, dy, eps, mean, variance)
  local shape, fx, fw, fb, fdy = x:shape(), flat(x), flat(w), flat(b), flat(dy)
  local channels, plane, count = shape[2], x:numel() / shape[1] / shape[2], x:numel() / shape[2]
  local function channel(i) return math.floor((i - 1) / plane) % channels + 1 end
  local m, v, given = {}, {}, mean ~= nil
  for c = 1, channels do m[c], v[c] = given and mean[c] or 0, given and variance[c] or 0 end
  if not given then
    for i = 1, #fx do m[channel(i)] = m[channel(i)] + fx[i] / count end
    for i = 1, #fx do v[channel(i)] = v[channel(i)] + (fx[i] - m[channel(i)]) ^ 2 / count end
  end
  local y, dx, dw, db, hat = {}, {}, {}, {}, {}
  for c = 1, channels do dw[c], db[c] = 0, 0 end
  for i = 1, #fx do
    local c = channel(i)
    hat[i] = (fx[i] - m[c]) / math.sqrt(v[c] + eps)
    y[i] = hat[i] * fw[c] + fb[c]
    dw[c], db[c] = dw[c] + fdy[i] * hat[i], db[c] + fdy[i]
  end
  for i = 1, #fx do
    local c = channel(i)
    local rest = given and 0 or db[c] / count + hat[i] * dw[c] / count
    dx[i] = fw[c] / math.sqrt(v[c] + eps) * (fdy[i] - rest)
  end
  return y, m, v, dx, dw, db
end

local shapes = { { 1, 1, 1, 2 }, { 2, 3, 1, 1 }, { 3, 5, 7, 3 }, { 4, 33, 5, 5 }, { 2, 3, 40, 41 }, { 6, 10 } }

local function case(shape)
  local c = { shape[2] }
  return random("f32", shape, 1, -1, 3), random("f32", c, 2, 0.5, 1.5), random("f32", c, 3), random("f32", c, 4), random("f32", c, 5, 0.5, 2),
    random("f32", shape, 6)
end

describe("batch norm", function()
  for _, shape in ipairs(shapes) do
    for _, batch in ipairs { true, false } do
      it(("of (%s), %s statistics"):format(table.concat(shape, ", "), batch and "the batch's" or "running"), function()
        local x, w, b, mean, variance, dy = case(shape)
        local before_m, before_v = flat(mean), flat(variance)
        local y, m, v, dx, dw, db = plain(x, w, b, dy, 1e-3, not batch and before_m or nil, before_v)
        local got, stats = ops.batch_norm(x, w, b, mean, variance, { eps = 1e-3, momentum = 0.1, batch = batch, update = true })
        near(got, y, 2e-5, 2e-5, "y")
        local count = x:numel() / shape[2]
        for c = 1, shape[2] do
          before_m[c] = batch and 0.9 * before_m[c] + 0.1 * m[c] or before_m[c]
          before_v[c] = batch and 0.9 * before_v[c] + 0.1 * v[c] * count / (count - 1) or before_v[c]
        end
        near(mean, before_m, 1e-5, 1e-6, "running mean")
        near(variance, before_v, 1e-5, 1e-6, "running variance")
        local gw, gb = core.new("f32", { shape[2] }):fill(0.5), core.new("f32", { shape[2] }):fill(0.25)
        local gx = ops.batch_norm_backward(dy, x, w, stats, batch, true, gw, gb)
        for c = 1, shape[2] do dw[c], db[c] = dw[c] + 0.5, db[c] + 0.25 end
        near(gx, dx, 1e-4, 1e-4, "dx")
        near(gw, dw, 2e-5, 2e-5, "dw")
        near(gb, db, 2e-5, 2e-5, "db")
        assert.is_nil(ops.batch_norm_backward(dy, x, w, stats, batch, false))
      end)
    end
  end

  it("leaves the running statistics alone where it repeats, and gives the same bits whatever the threads", function()
    local x, w, b, mean, variance, dy = case { 4, 33, 30, 30 }
    local m, v = reference.bits(mean), reference.bits(variance)
    reference.any_threads(function()
      local y, stats = ops.batch_norm(x, w, b, mean, variance, { eps = 1e-5, batch = true })
      local dw, db = core.zeros("f32", { 33 }), core.zeros("f32", { 33 })
      return y, stats, ops.batch_norm_backward(dy, x, w, stats, true, true, dw, db), dw, db
    end)
    assert.equal(m, reference.bits(mean))
    assert.equal(v, reference.bits(variance))
  end)

  it("holds a mean far from 0", function()
    local x = core.from_table { { { { 10000, 10001, 10002, 10003 } } } }
    local y = ops.batch_norm(x, core.from_table { 1 }, core.from_table { 0 }, core.from_table { 0 }, core.from_table { 1 }, { eps = 0, batch = true })
    local s = math.sqrt(1.25)
    near(y, { -1.5 / s, -0.5 / s, 0.5 / s, 1.5 / s }, 1e-5, 1e-5)
  end)

  it("refuses what does not fit", function()
    local x, w, b, mean, variance = case { 2, 3, 4, 4 }
    assert.error_matches(function() ops.batch_norm(x, w, b, mean, core.zeros("f32", { 2 }), { eps = 1 }) end, "expected f32 of 3")
    assert.error_matches(function() ops.batch_norm(core.new("f32", { 0, 3, 4, 4 }), w, b, mean, variance, { eps = 1, batch = true }) end, "empty")
    assert.error_matches(function() ops.batch_norm(x:to "bf16", w, b, mean, variance, { eps = 1 }) end, "f32")
  end)
end)

describe("averages on a grid", function()
  it("cover the image as asked, also where cells overlap", function()
    for _, c in ipairs { { 2, 2, 7, 7 }, { 7, 7, 7, 7 }, { 5, 8, 3, 2 }, { 13, 9, 7, 7 }, { 4, 6, 1, 1 } } do
      local h, w, rows, columns = unpack(c)
      local x, dy = random("f32", { 2, 3, h, w }, 1), random("f32", { 2, 3, rows, columns }, 2)
      local fx, fdy, want, back = flat(x), flat(dy), {}, {}
      for i = 1, #fx do back[i] = 0 end
      for p = 0, 5 do
        for i = 0, rows - 1 do
          for j = 0, columns - 1 do
            local at, sum, cells = (p * rows + i) * columns + j + 1, 0, {}
            for r = math.floor(i * h / rows), math.ceil((i + 1) * h / rows) - 1 do
              for s = math.floor(j * w / columns), math.ceil((j + 1) * w / columns) - 1 do cells[#cells + 1] = (p * h + r) * w + s + 1 end
            end
            for _, k in ipairs(cells) do
              sum = sum + fx[k]
              back[k] = back[k] + fdy[at] / #cells
            end
            want[at] = sum / #cells
          end
        end
      end
      near(ops.adaptive_pool(x, rows, columns), want, 1e-5, 1e-6)
      near(ops.adaptive_pool_backward(dy, h, w), back, 1e-5, 1e-6)
    end
  end)
end)

describe("image activations and concatenation", function()
  it("have the values and slopes of their definitions", function()
    local list = { -4, -3.0001, -2.5, -1, -1e-3, 1e-3, 1, 2.9, 3.0001, 5.9, 6.1, 9 }
    local x = core.from_table(list)
    local function hard(v) return math.max(0, math.min(6, v + 3)) / 6 end
    local functions = { relu6 = function(v) return math.max(0, math.min(6, v)) end, hardsigmoid = hard,
      hardswish = function(v) return v * hard(v) end }
    for name, f in pairs(functions) do
      local want, slopes = {}, {}
      for i, v in ipairs(list) do
        want[i] = f(v)
        slopes[i] = (f(v + 1e-6) - f(v - 1e-6)) / 2e-6
      end
      near(ops.unary(x, name), want, 1e-6, 1e-6, name)
      local _, grads = autograd.value_and_grad(function(p) return recorded[name](p.x):sum "all" end, { x = x })
      near(grads.x, slopes, 1e-4, 1e-4, name .. "'s slope")
    end
  end)

  it("lay tensors behind each other, and their gradients apart again", function()
    local a, b, weights = tensor.randn({ 2, 3, 2, 2 }, 1), tensor.randn({ 2, 1, 2, 2 }, 2), tensor.randn({ 2, 4, 2, 2 }, 3)
    local y = recorded.cat(a, b, 2)
    assert.equal(reference.bits(a), reference.bits(y:narrow(2, 1, 3)))
    assert.equal(reference.bits(b), reference.bits(y:narrow(2, 4, 1)))
    local _, grads = autograd.value_and_grad(function(p) return (recorded.cat(p.a, p.b, 2) * weights):sum "all" end, { a = a, b = b })
    near(grads.a, flat(weights:narrow(2, 1, 3)))
    near(grads.b, flat(weights:narrow(2, 4, 1)))
  end)
end)

describe("class loss", function()
  it("makes its gradient on the way forward, scaled, without those left out", function()
    local logits, labels = random("f32", { 4, 5 }, 1, -3, 3), reference.ints { 2, -100, 0, 4 }
    local nll, want = ops.cross_entropy(logits, labels, 0.5, true)
    local tape = require "onn.autograd.tape"
    local t = tape.new()
    t:watch(logits)
    local got = t:run(function() return recorded.class_loss(logits, labels, 0.5) end)
    assert.equal(reference.bits(nll), reference.bits(got))
    assert.equal(reference.bits(want), reference.bits(t:backward { [got] = got }[logits]))
  end)
end)
