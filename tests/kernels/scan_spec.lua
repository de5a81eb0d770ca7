local core = require "onn.core.tensor"
local ops = require "onn.core.ops"
local reference = require "tests.kernels.reference"
local random, flat, near, ints = reference.random, reference.flat, reference.near, reference.ints

-- The causal convolution of flat tables: x (tokens, channels), w (channels, size), bias (channels) or nil.
local function conv(x, w, bias, channels, size, starts)
  local y = {}
  for s = 1, #starts - 1 do
    for t = starts[s], starts[s + 1] - 1 do
      for c = 1, channels do
        local sum = bias and bias[c] or 0
        for k = 0, size - 1 do
          local from = t - size + 1 + k
          if from >= starts[s] then sum = sum + w[(c - 1) * size + k + 1] * x[from * channels + c] end
        end
        y[t * channels + c] = sum
      end
    end
  end
  return y
end

describe("causal convolution", function()
  it("and its gradients, within each sequence", function()
    for _, case in ipairs { { 1, 4, { 0, 1 } }, { 5, 4, { 0, 3, 3, 9 } }, { 33, 2, { 0, 7, 12 } }, { 16, 1, { 0, 4 } }, { 20, 16, { 0, 20 } } } do
      local channels, size, starts = unpack(case)
      local tokens = starts[#starts]
      local x = random("f32", { tokens, channels + 3 }, 1):narrow(2, 2, channels)
      local w, bias, dy = random("f32", { channels, 1, size }, 2), random("f32", { channels }, 3), random("f32", { tokens, channels }, 4)
      local fx, fw, fb, fdy = flat(x), flat(w), flat(bias), flat(dy)
      near(ops.causal_conv(x, w, bias, ints(starts)), conv(fx, fw, fb, channels, size, starts), 1e-6, 1e-6)
      near(ops.causal_conv(x, w, nil, ints(starts)), conv(fx, fw, nil, channels, size, starts), 1e-6, 1e-6)
      local dw, db = core.new("f32", { channels, 1, size }):fill(2), core.new("f32", { channels }):fill(-1)
      local dx = ops.causal_conv_backward(dy, x, w, ints(starts), dw, db)
      local function loss(a, b, c) return reference.dot(fdy, conv(a, b, c, channels, size, starts)) end
      near(dx, reference.gradient(function(v) return loss(v, fw, fb) end, fx), 1e-5, 1e-5)
      local want = reference.gradient(function(v) return loss(fx, v, fb) end, fw)
      for i = 1, #want do want[i] = want[i] + 2 end
      near(dw, want, 1e-5, 1e-5)
      want = reference.gradient(function(v) return loss(fx, fw, v) end, fb)
      for i = 1, #want do want[i] = want[i] - 1 end
      near(db, want, 1e-5, 1e-5)
    end
  end)

  it("goes on from a state", function()
    local x, w, bias = random("f32", { 30, 20 }, 1), random("f32", { 20, 4 }, 2), random("f32", { 20 }, 3)
    local whole = ops.causal_conv(x, w, bias, ints { 0, 14, 30 })
    local state, parts = core.zeros("f32", { 2, 3, 20 }), {}
    local function step(first, second, n)
      local y = ops.causal_conv(core.from_table { unpack(first) }, w, bias, ints { 0, n, 2 * n }, state)
      parts[#parts + 1] = y
      return y, second
    end
    local rows = x:totable()
    for t = 1, 14 do step({ rows[t], rows[14 + t] }, nil, 1) end
    for t, y in ipairs(parts) do
      assert.equal(reference.bits(whole:narrow(1, t, 1), whole:narrow(1, 14 + t, 1)), reference.bits(y:narrow(1, 1, 1), y:narrow(1, 2, 1)))
    end
    local last = state:select(1, 1)
    assert.equal(reference.bits(x:narrow(1, 12, 3)), reference.bits(last))
  end)

  it("gives the same bits for any threads and any packing", function()
    local x, w, bias, dy = random("f32", { 400, 130 }, 1), random("f32", { 130, 4 }, 2), random("f32", { 130 }, 3), random("f32", { 400, 130 }, 4)
    local y, dx, dw = reference.any_threads(function()
      local dw, db = core.zeros("f32", { 130, 4 }), core.zeros("f32", { 130 })
      local dx = ops.causal_conv_backward(dy, x, w, ints { 0, 150, 400 }, dw, db)
      return ops.causal_conv(x, w, bias, ints { 0, 150, 400 }), dx, dw, db
    end)
    local alone = core.zeros("f32", { 130, 4 })
    for _, part in ipairs { { 1, 150 }, { 151, 250 } } do
      local function cut(t) return t:narrow(1, part[1], part[2]) end
      assert.equal(reference.bits(cut(y)), reference.bits(ops.causal_conv(cut(x), w, bias, ints { 0, part[2] })))
      assert.equal(reference.bits(cut(dx)), reference.bits(ops.causal_conv_backward(cut(dy), cut(x), w, ints { 0, part[2] }, alone)))
    end
    assert.equal(reference.bits(dw), reference.bits(alone))
  end)

  it("refuses what does not fit", function()
    local x, starts = random("f32", { 5, 8 }, 1), ints { 0, 5 }
    assert.error_matches(function() ops.causal_conv(x, random("f32", { 7, 4 }, 1), nil, starts) end, "with 8 rows")
    assert.error_matches(function() ops.causal_conv(x, random("f32", { 8, 17 }, 1), nil, starts) end, "1 to 16")
    assert.error_matches(function() ops.causal_conv(x:to "bf16", random("f32", { 8, 4 }, 1), nil, starts) end, "expected f32")
    assert.error_matches(function() ops.causal_conv(x, random("f32", { 8, 4 }, 1), nil, ints { 0, 4 }) end, "starts end at 4")
  end)
end)

-- The selective scan of flat tables; o: heads, size, groups, states, decays (1 or states), starts, low, high.
local function scan(x, dt, b, c, a_log, bias, d, o)
  local y, channels = {}, o.heads * o.size
  for s = 1, #o.starts - 1 do
    local state = {}
    for t = o.starts[s], o.starts[s + 1] - 1 do
      for ch = 0, channels - 1 do
        local h = math.floor(ch / o.size)
        local g = math.floor(h / (o.heads / o.groups))
        local step = math.log(1 + math.exp(dt[t * o.heads + h + 1] + (bias and bias[h + 1] or 0)))
        step = math.max(o.low or 0, math.min(o.high or math.huge, step))
        local value, sum = x[t * channels + ch + 1], 0
        for n = 0, o.states - 1 do
          local a = -math.exp(a_log[o.decays == 1 and h + 1 or h * o.states + n + 1])
          local at, of = ch * o.states + n, (t * o.groups + g) * o.states + n + 1
          state[at] = math.exp(step * a) * (state[at] or 0) + step * b[of] * value
          sum = sum + c[of] * state[at]
        end
        y[t * channels + ch + 1] = sum + (d and d[h + 1] * value or 0)
      end
    end
  end
  return y
end

local function operands(o)
  local n, channels = o.starts[#o.starts], o.heads * o.size
  local bc = random("f32", { n, 2 * o.groups, o.states }, 5)
  return random("f32", { n, channels + 1 }, 1):narrow(2, 2, channels), random("f32", { n, o.heads + 2 }, 2, -2, 1):narrow(2, 1, o.heads),
    bc:narrow(2, 1, o.groups), bc:narrow(2, o.groups + 1, o.groups),
    o.decays == 1 and random("f32", { o.heads }, 6, -1, 1.5) or random("f32", { o.heads, o.states }, 6, -1, 1.5),
    random("f32", { o.heads }, 7), random("f32", { o.heads }, 8), random("f32", { n, channels }, 9)
end

local cases = {
  { heads = 1, size = 1, groups = 1, states = 1, decays = 1, starts = { 0, 1 } },
  { heads = 5, size = 1, groups = 1, states = 4, decays = 4, starts = { 0, 4, 4, 7 } },
  { heads = 19, size = 1, groups = 1, states = 3, decays = 3, starts = { 0, 6 }, low = 0.3, high = 0.9 },
  { heads = 4, size = 3, groups = 2, states = 5, decays = 1, starts = { 0, 3, 8 } },
  { heads = 2, size = 18, groups = 1, states = 2, decays = 1, starts = { 0, 4 }, low = 0.2 },
}

describe("selective scan", function()
  it("and its gradients, within each sequence", function()
    for _, o in ipairs(cases) do
      for _, bare in ipairs { false, true } do
        local x, dt, b, c, a_log, bias, d, dy = operands(o)
        if bare then bias, d = nil, nil end
        local p = { flat(x), flat(dt), flat(b), flat(c), flat(a_log), bias and flat(bias), d and flat(d) }
        local y = ops.scan(x, dt, b, c, a_log, bias, d, ints(o.starts), o.low, o.high)
        near(y, scan(p[1], p[2], p[3], p[4], p[5], p[6], p[7], o), 1e-5, 2e-6, "y")
        local da, dd = core.new("f32", a_log:shape()):fill(1), d and core.new("f32", { o.heads }):fill(2) or nil
        local got = { ops.scan_backward(dy, x, dt, b, c, a_log, bias, d, ints(o.starts), o.low, o.high, da, dd) }
        local fdy = flat(dy)
        local function want(k, plus)
          local g = reference.gradient(function(v)
            local q = { p[1], p[2], p[3], p[4], p[5], p[6], p[7] }
            q[k] = v
            return reference.dot(fdy, scan(q[1], q[2], q[3], q[4], q[5], q[6], q[7], o))
          end, p[k])
          for i = 1, #g do g[i] = g[i] + plus end
          return g
        end
        for k, name in ipairs { "dx", "ddt", "db", "dc" } do near(got[k], want(k, 0), 2e-5, 5e-6, name) end
        near(da, want(5, 1), 2e-5, 5e-6, "da_log")
        if d then
          near(dd, want(7, 2), 2e-5, 5e-6, "dd")
          local dbias = core.zeros("f32", { o.heads })
          ops.sum_rows(dbias, got[2], ints(o.starts))
          near(dbias, want(6, 0), 2e-5, 5e-6, "dbias")
        end
      end
    end
  end)

  local wide = { heads = 6, size = 24, groups = 2, states = 20, decays = 1, starts = { 0, 70, 180 } }
  local narrow = { heads = 70, size = 1, groups = 1, states = 16, decays = 16, starts = { 0, 70, 180 } }

  it("goes on from a state", function()
    for _, o in ipairs { wide, narrow } do
      local x, dt, b, c, a_log, bias, d = operands(o)
      local whole = ops.scan(x, dt, b, c, a_log, bias, d, ints { 0, 180 })
      local state, at = core.zeros("f32", { 1, o.heads * o.size, o.states }), 1
      for _, n in ipairs { 100, 1, 1, 78 } do
        local function cut(t) return t:narrow(1, at, n) end
        local y = ops.scan(cut(x), cut(dt), cut(b), cut(c), a_log, bias, d, ints { 0, n }, nil, nil, state)
        assert.equal(reference.bits(cut(whole)), reference.bits(y))
        at = at + n
      end
    end
  end)

  it("gives the same bits for any threads and any packing", function()
    for _, o in ipairs { wide, narrow } do
      local x, dt, b, c, a_log, bias, d, dy = operands(o)
      local function gradients(dy1, x1, dt1, b1, c1, starts, da, dd)
        return ops.scan_backward(dy1, x1, dt1, b1, c1, a_log, bias, d, starts, nil, nil, da, dd)
      end
      local da, dd
      local y, dx, ddt, db, dc = reference.any_threads(function()
        da, dd = core.zeros("f32", a_log:shape()), core.zeros("f32", { o.heads })
        local dx, ddt, db, dc = gradients(dy, x, dt, b, c, ints(o.starts), da, dd)
        return ops.scan(x, dt, b, c, a_log, bias, d, ints(o.starts)), dx, ddt, db, dc, da, dd
      end)
      local da1, dd1 = core.zeros("f32", a_log:shape()), core.zeros("f32", { o.heads })
      for _, part in ipairs { { 1, 70 }, { 71, 110 } } do
        local function cut(t) return t:narrow(1, part[1], part[2]) end
        local starts = ints { 0, part[2] }
        assert.equal(reference.bits(cut(y)), reference.bits(ops.scan(cut(x), cut(dt), cut(b), cut(c), a_log, bias, d, starts)))
        assert.equal(reference.bits(cut(dx), cut(ddt), cut(db), cut(dc)),
          reference.bits(gradients(cut(dy), cut(x), cut(dt), cut(b), cut(c), starts, da1, dd1)))
      end
      assert.equal(reference.bits(da, dd), reference.bits(da1, dd1))
    end
  end)

  it("leaves nothing half done when memory is short", function()
    local x, dt, b, c, a_log, bias, d, dy = operands(narrow)
    assert(reference.nothing_half_done(function() return { core.zeros("f32", a_log:shape()), core.zeros("f32", { 70 }) } end, function(da, dd)
      for _, t in ipairs { ops.scan_backward(dy, x, dt, b, c, a_log, bias, d, ints(narrow.starts), nil, nil, da, dd) } do t:free() end
    end) > 0)
  end)

  it("refuses what does not fit", function()
    local x, dt, b, c, a_log, bias, d = operands(wide)
    local starts = ints(wide.starts)
    local function refuses(pattern, ...)
      local list = { n = select("#", ...), ... }
      assert.error_matches(function() ops.scan(unpack(list, 1, list.n)) end, pattern)
    end
    refuses("do not divide the channels", x, random("f32", { 180, 7 }, 1), b, c, a_log, bias, d, starts)
    refuses("one shape", x, dt, b, c:narrow(3, 1, 9), a_log, bias, d, starts)
    refuses("expected %(heads%)", x, dt, b, c, random("f32", { 6, 9 }, 1), bias, d, starts)
    refuses("f32 of 6", x, dt, b, c, a_log, random("f32", { 5 }, 1), d, starts)
    refuses("a low limit", x, dt, b, c, a_log, bias, d, starts, 2, 1)
  end)

  reference.every_instruction_set(it, pending)
end)
