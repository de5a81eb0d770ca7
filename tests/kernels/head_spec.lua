local core = require "onn.core.tensor"
local ops = require "onn.core.ops"
local reference = require "tests.kernels.reference"
local random, gapped, flat, near, floats, ints = reference.random, reference.gapped, reference.flat, reference.near, reference.floats,
  reference.ints

-- nll, dx, dw, dbias of the whole in double, from tables; bias and cap may be nil.
local function head(x, w, labels, rows, width, vocabulary, scale, multiplier, bias, cap)
  local nll, dx, dw, dbias = {}, {}, {}, {}
  for v = 1, vocabulary do dbias[v] = 0 end
  for i = 1, rows * width do dx[i] = 0 end
  for i = 1, vocabulary * width do dw[i] = 0 end
  for r = 0, rows - 1 do
    nll[r + 1] = 0
    if labels[r + 1] >= 0 then
      local l, most, total = {}, -math.huge, 0
      for v = 0, vocabulary - 1 do
        l[v] = 0
        for k = 1, width do l[v] = l[v] + multiplier * x[r * width + k] * w[v * width + k] end
        if bias then l[v] = l[v] + multiplier * bias[v + 1] end
        if cap then l[v] = cap * math.tanh(l[v] / cap) end
        most = math.max(most, l[v])
      end
      for v = 0, vocabulary - 1 do total = total + math.exp(l[v] - most) end
      nll[r + 1] = most + math.log(total) - l[labels[r + 1]]
      for v = 0, vocabulary - 1 do
        local g = scale * multiplier * (math.exp(l[v] - most) / total - (v == labels[r + 1] and 1 or 0))
        if cap then g = g * (1 - (l[v] / cap) ^ 2) end
        dbias[v + 1] = dbias[v + 1] + g
        for k = 1, width do
          dx[r * width + k] = dx[r * width + k] + g * w[v * width + k]
          dw[v * width + k] = dw[v * width + k] + g * x[r * width + k]
        end
      end
    end
  end
  return nll, dx, dw, dbias
end

local function labels_of(rows, vocabulary, every)
  local labels = {}
  for r = 1, rows do labels[r] = r % (every or 4) == 0 and -100 or (r * 7919) % vocabulary end
  return labels
end

local function weight(dtype, vocabulary, width, turned)
  local w = turned and random("f32", { width, vocabulary }, 2, -0.5, 0.5) or random("f32", { vocabulary, width }, 2, -0.5, 0.5)
  w = w:to(dtype)
  return turned and w:transpose(1, 2) or w
end

describe("head and loss", function()
  it("and their gradients", function()
    for _, shape in ipairs { { 1, 1, 1 }, { 3, 7, 17 }, { 9, 33, 65 }, { 150, 17, 130 }, { 5, 8, 2100 } } do
      local rows, width, vocabulary = unpack(shape)
      for _, dtypes in ipairs { { "f32", "f32" }, { "f32", "bf16" }, { "f32", "f16" }, { "bf16", "bf16" } } do
        for _, turned in ipairs { false, true } do
          local x, w, labels = gapped(dtypes[1], rows, width, 1), weight(dtypes[2], vocabulary, width, turned), labels_of(rows, vocabulary)
          local nll, dx, dw = head(flat(x), flat(w), labels, rows, width, vocabulary, 0.5, 1.5)
          local got_dw = core.new("f32", { vocabulary, width }):fill(2)
          local got, got_dx = ops.head_loss(x, w, ints(labels), rows > 100 and ints { 0, 20, 20, rows } or nil, 0.5, 1.5, true, got_dw)
          local coarse = dtypes[1] == "bf16" -- dlogits go through bf16
          for i = 1, #dw do dw[i] = dw[i] + 2 end
          near(got, nll, 1e-5, 1e-5, "nll")
          near(got_dx, dx, coarse and 0.01 or 1e-5, coarse and 0.004 or 3e-6, "dx")
          near(got_dw, dw, 1e-6, coarse and 0.02 or 2e-5, "dw")
          assert.equal(reference.bits(got), reference.bits((ops.head_loss(x, w, ints(labels), nil, 0.5, 1.5, false))))
        end
      end
    end
  end)

  it("with a bias and a cap, and their gradients", function()
    for _, shape in ipairs { { 1, 1, 1 }, { 9, 33, 65 }, { 150, 17, 130 }, { 5, 8, 2100 } } do
      local rows, width, vocabulary = unpack(shape)
      for _, dtypes in ipairs { { "f32", "f32" }, { "f32", "f16" }, { "bf16", "bf16" } } do
        for _, capped in ipairs { false, true } do
          local x, w, labels = gapped(dtypes[1], rows, width, 1, -4, 4), weight(dtypes[2], vocabulary, width), labels_of(rows, vocabulary)
          local bias, cap = random("f32", { vocabulary }, 5, -3, 3), capped and 2.5 or nil
          local nll, dx, dw, dbias = head(flat(x), flat(w), labels, rows, width, vocabulary, 0.5, 1.5, flat(bias), cap)
          local got_dw, got_dbias = core.zeros("f32", { vocabulary, width }), core.new("f32", { vocabulary }):fill(1)
          local got, got_dx = ops.head_loss(x, w, ints(labels), rows > 100 and ints { 0, 20, 20, rows } or nil, 0.5, 1.5, true, got_dw, bias,
            cap, got_dbias)
          local coarse = dtypes[1] == "bf16"
          for i = 1, #dbias do dbias[i] = dbias[i] + 1 end
          near(got, nll, 1e-5, 1e-5, "nll")
          near(got_dx, dx, coarse and 0.01 or 1e-5, coarse and 0.006 or 5e-6, "dx")
          near(got_dw, dw, 1e-6, coarse and 0.08 or 5e-5, "dw")
          near(got_dbias, dbias, 1e-6, coarse and 0.02 or 2e-5, "dbias")
          local alone = core.new("f32", { vocabulary }):fill(1)
          ops.head_loss(x, w, ints(labels), rows > 100 and ints { 0, 20, 20, rows } or nil, 0.5, 1.5, false, nil, bias, cap, alone)
          assert.equal(reference.bits(got_dbias), reference.bits(alone))
        end
      end
    end
  end)

  it("agree with a product and a cross entropy", function()
    local x, w, labels = random("f32", { 40, 33 }, 1), weight("f32", 300, 33), ints(labels_of(40, 300))
    local nll, dx = ops.head_loss(x, w, labels, nil, 1, 1, true)
    local logits = ops.linear(x, w)
    local nll2, dlogits = ops.cross_entropy(logits, labels, 1, true)
    near(nll, flat(nll2), 2e-6, 2e-6)
    near(dx, flat((ops.linear_backward(dlogits, w))), 1e-5, 2e-6)
  end)

  it("give zeros where no token has a label", function()
    local x, w = random("bf16", { 200, 9 }, 1), weight("bf16", 20, 9)
    local dw = core.zeros("f32", { 20, 9 })
    local nll, dx = ops.head_loss(x, w, core.new("i32", { 200 }):fill(-100), nil, 1, 1, true, dw)
    near(nll, 0, 0, 0)
    near(dx, 0, 0, 0)
    near(dw, 0, 0, 0)
    near((ops.head_loss(core.new("f32", { 0, 9 }), weight("f32", 20, 9), core.new("i32", { 0 }), nil, 1, 1, true)), {})
  end)

  it("of large logits and NaN", function()
    local w = core.from_table { { 1 }, { 0 }, { -1 } }
    local nll, dx = ops.head_loss(core.from_table { { 1e4 }, { 3e38 }, { 0 / 0 } }, w, ints { 1, 0, 2 }, nil, 1, 1, true)
    local l, d = nll:totable(), dx:totable()
    assert(l[1] == 1e4 and l[2] == 0 and l[3] ~= l[3])
    assert(d[1][1] == 1 and d[2][1] == 0 and d[3][1] ~= d[3][1])
  end)

  it("give a token the same bits alone and among others, whatever the threads", function()
    for _, dtype in ipairs(floats) do
      local x, w, labels = random(dtype, { 200, 65 }, 1), weight(dtype, 2500, 65), labels_of(200, 2500, 5)
      local starts = ints { 0, 60, 200 }
      local nll, dx, dw = reference.any_threads(function()
        local dw = core.zeros("f32", { 2500, 65 })
        local nll, dx = ops.head_loss(x, w, ints(labels), starts, 0.5, 1, true, dw)
        return nll, dx, dw
      end)
      local alone = core.zeros("f32", { 2500, 65 })
      for _, cut in ipairs { { 1, 60 }, { 61, 140 } } do
        local some = {}
        for i = 1, cut[2] do some[i] = labels[cut[1] + i - 1] end
        local nll1, dx1 = ops.head_loss(x:narrow(1, cut[1], cut[2]), w, ints(some), nil, 0.5, 1, true, alone)
        assert.equal(reference.bits(nll:narrow(1, cut[1], cut[2]), dx:narrow(1, cut[1], cut[2])), reference.bits(nll1, dx1))
      end
      assert.equal(reference.bits(dw), reference.bits(alone))
      local one, one_dx = ops.head_loss(x:narrow(1, 7, 1), w, ints { labels[7] }, nil, 0.5, 1, true)
      assert.equal(reference.bits(nll:narrow(1, 7, 1), dx:narrow(1, 7, 1)), reference.bits(one, one_dx))
    end
  end)

  it("never hold all logits", function()
    local rows, vocabulary = 1000, 30000
    local x, w, labels = random("f32", { rows, 16 }, 1), weight("f32", vocabulary, 16), ints(labels_of(rows, vocabulary))
    for _, gradient in ipairs { true, false } do
      collectgarbage()
      collectgarbage()
      local used = core.memory().used
      core.reset_peak()
      ops.head_loss(x, w, labels, nil, 1, 1, gradient)
      assert(core.memory().peak - used < rows * vocabulary * 4 / (gradient and 10 or 20))
    end
  end)

  -- The loss with the weight in parts of these numbers of cuts (the last one takes the rest).
  local function streamed(x, w, labels, parts, scale, multiplier, gradient, bias, cap)
    local vocabulary = w:size(1)
    local state, first, k = ops.head_begin(x, vocabulary, gradient), 0, 1
    while first < vocabulary do
      local rows = math.min(vocabulary - first, (parts[k] or math.huge) * ops.head_cut)
      ops.head_part(state, x, w:narrow(1, first + 1, rows), labels, first, multiplier, bias, cap)
      first, k = first + rows, k + 1
    end
    return ops.head_end(state, x, labels, scale, multiplier, gradient, cap)
  end

  it("have the same bits whatever parts the weight comes in, any threads, any micro-batch", function()
    local vocabulary = 3 * ops.head_cut + 77
    for _, dtypes in ipairs { { "f32", "f32" }, { "f32", "f16" }, { "bf16", "bf16" } } do
      local rows = 75
      local x, w, labels = gapped(dtypes[1], rows, 33, 1, -8, 8), weight(dtypes[2], vocabulary, 33), labels_of(rows, vocabulary, 3)
      for i = 10, 44 do labels[i] = -100 end
      labels[1], labels[2], labels[4], labels[5], labels[75] = 0, vocabulary - 1, ops.head_cut, ops.head_cut - 1, 2 * ops.head_cut + 31
      local bias, cap = random("f32", { vocabulary }, 5), 3
      local capped = reference.bits(ops.head_loss(x, w, ints(labels), nil, 0.5, 1.5, true, nil, bias, cap))
      local all = reference.bits(ops.head_loss(x, w, ints(labels), nil, 0.5, 1.5, true))
      assert.not_equal(all, capped)
      for _, parts in ipairs { {}, { 1, 1, 1 }, { 2, 1 }, { 1, 2 } } do
        local nll, dx = reference.any_threads(function() return streamed(x, w, ints(labels), parts, 0.5, 1.5, true) end)
        assert.equal(all, reference.bits(nll, dx))
        assert.equal(capped, reference.bits(reference.any_threads(function()
          return streamed(x, w, ints(labels), parts, 0.5, 1.5, true, bias, cap)
        end)))
        assert.equal(reference.bits(nll), reference.bits((streamed(x, w, ints(labels), parts, 0.5, 1.5, false))))
      end
      local nll, dx = ops.head_loss(x, w, ints(labels), nil, 0.5, 1.5, true)
      for _, cut in ipairs { { 1, 1 }, { 2, 40 }, { 20, 20 }, { 42, 34 } } do
        local some = {}
        for i = 1, cut[2] do some[i] = labels[cut[1] + i - 1] end
        local nll1, dx1 = streamed(x:narrow(1, cut[1], cut[2]), w, ints(some), { 2 }, 0.5, 1.5, true)
        assert.equal(reference.bits(nll:narrow(1, cut[1], cut[2]), dx:narrow(1, cut[1], cut[2])), reference.bits(nll1, dx1))
      end
    end
  end)

  it("are right for thousands of tokens and for maxima that move in every cut", function()
    local rows, width, vocabulary = 2300, 3, 2 * ops.head_cut + 5
    local labels, ascending = {}, {}
    for r = 1, rows do labels[r] = r % 5 == 0 and -100 or (r * 7919) % vocabulary end
    for v = 1, vocabulary do ascending[v] = { 0.01 * v, math.sin(v), 1 } end
    local x = random("f32", { rows, width }, 1)
    for _, w in ipairs { core.from_table(ascending), weight("f32", vocabulary, width) } do
      local nll, dx = ops.head_loss(x, w, ints(labels), nil, 2, 1, true)
      for _, r in ipairs { 1, 2, 37, 1023, 1024, 1281, 2299, 2300 } do
        local want_nll, want_dx = head(flat(x:narrow(1, r, 1)), flat(w), { labels[r] }, 1, width, vocabulary, 2, 1)
        near(nll:narrow(1, r, 1), want_nll, 3e-6, 1e-5, "nll")
        near(dx:narrow(1, r, 1), want_dx, 1e-4, 2e-5, "dx")
      end
    end
  end)

  it("take tokens of one part for another's in no case", function()
    local x, w, labels = random("f32", { 3, 9 }, 1), weight("f32", ops.head_cut + 20, 9), ints { 0, 5, -100 }
    local cut, vocabulary = ops.head_cut, w:size(1)
    local function refuses(pattern, f) assert.error_matches(f, pattern) end
    local state = ops.head_begin(x, vocabulary)
    refuses("a multiple of %d+ rows or the last " .. vocabulary, function() ops.head_part(state, x, w:narrow(1, 1, 40), labels, 0) end)
    refuses("from row 0 on is expected, got " .. cut, function() ops.head_part(state, x, w:narrow(1, cut + 1, 20), labels, cut) end)
    refuses("0 of %d+ rows", function() ops.head_end(state, x, labels, 1, 1, true) end)
    ops.head_part(state, x, w:narrow(1, 1, cut), labels, 0)
    refuses("or the last 20, got 21", function() ops.head_part(state, x, w:narrow(1, 1, 21), labels, cut) end)
    refuses("began with another input", function() ops.head_part(state, x:narrow(1, 1, 2), w, ints { 0, 1 }, cut) end)
    refuses("began with another input", function() ops.head_part(state, x:to "bf16", w:to "bf16", labels, cut) end)
    refuses("outside 0..", function() ops.head_part(state, x, w:narrow(1, 1, 20), ints { 0, vocabulary, 1 }, cut) end)
    ops.head_part(state, x, w:narrow(1, cut + 1, 20), labels, cut)
    local used = core.memory().used
    local nll, dx = ops.head_end(state, x, labels, 1, 1, true)
    assert.equal(reference.bits(ops.head_loss(x, w, labels, nil, 1, 1, true)), reference.bits(nll, dx))
    assert(core.memory().used < used)
    refuses("this loss has ended", function() ops.head_end(state, x, labels, 1, 1, true) end)
    local losses = ops.head_begin(x, vocabulary, false)
    ops.head_part(losses, x, w, labels, 0)
    refuses("began without a gradient", function() ops.head_end(losses, x, labels, 1, 1, true) end)
    assert.equal(reference.bits(nll), reference.bits((ops.head_end(losses, x, labels, 1, 1))))
  end)

  it("are recorded on a tape, whole or streamed, with the same gradient", function()
    local tape, recorded = require "onn.autograd.tape", require "onn.ops"
    local x, w, labels = random("f32", { 5, 9 }, 1), weight("f32", 2 * ops.head_cut, 9), ints { 0, 5, -100, 2047, 1024 }
    local function gradient(f)
      local t = tape.new()
      t:watch(x)
      local nll = t:run(f)
      local dx = t:backward({ [nll] = nll })[x]
      return reference.bits(nll, dx)
    end
    local whole = gradient(function() return recorded.head_loss(x, w, nil, labels, nil, 0.5, 1) end)
    assert.equal(whole, gradient(function()
      local state = ops.head_begin(x, w:size(1))
      for first = 0, ops.head_cut, ops.head_cut do ops.head_part(state, x, w:narrow(1, first + 1, ops.head_cut), labels, first) end
      return recorded.head_end(x, state, labels, 0.5, 1)
    end))
  end)

  it("leave nothing half done when memory is short", function()
    local x, w, labels = random("f32", { 300, 33 }, 1), weight("f32", 500, 33), ints(labels_of(300, 500))
    assert(reference.nothing_half_done(function() return { core.zeros("f32", { 500, 33 }) } end, function(dw)
      for _, t in ipairs { ops.head_loss(x, w, labels, nil, 1, 1, true, dw) } do t:free() end
    end) > 0)
  end)

  it("refuse labels that are no entry of the vocabulary", function()
    local x, w = random("f32", { 2, 9 }, 1), weight("f32", 20, 9)
    for _, label in ipairs { 20, -1, -99 } do
      assert.error_matches(function() ops.head_loss(x, w, ints { 0, label }, nil, 1, 1, true) end, "outside 0..19")
    end
    assert.error_matches(function() ops.head_loss(x, w, ints { 0 }, nil, 1, 1, true) end, "expected i32 of 2")
    assert.error_matches(function() ops.head_loss(x, w, ints { 0, 1 }, nil, 1, 1, true, core.zeros("f32", { 20, 8 })) end,
      "expected f32 of 180")
  end)

  reference.every_instruction_set(it, pending)
end)
