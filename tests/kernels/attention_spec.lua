local core = require "onn.core.tensor"
local ops = require "onn.core.ops"
local reference = require "tests.kernels.reference"
local random, flat, near, floats, ints = reference.random, reference.flat, reference.near, reference.floats, reference.ints

-- Does the query at number `at` of its sequence see key j?
local function sees(o, at, j)
  return (not o.causal or j <= at) and (o.window == 0 or j > at - o.window)
    and (not o.chunk or math.floor(j / o.chunk) == math.floor(at / o.chunk))
end

-- The logit of head h (from 0), and its slope by dot.
local function logit(o, dot, h, at, j)
  local x, slope = dot * o.scale, o.scale
  if o.cap then
    local t = math.tanh(x / o.cap)
    x, slope = o.cap * t, slope * (1 - t * t)
  end
  if o.bias then x = x + o.bias[h + 1][math.max(1, math.min(#o.bias[1], j - at + o.zero + 1))] end
  return x, slope
end

-- What attention should be. q (tokens, heads, size), k (tokens, kv_heads, size), v (tokens, kv_heads, values) as tables; o: the case.
local function attention(q, k, v, o)
  local y, lse = {}, {}
  local values = o.values or o.size
  local group = o.heads / o.kv_heads
  for s = 1, #o.q_starts - 1 do
    local q0, k0 = o.q_starts[s], o.k_starts[s]
    local queries, keys = o.q_starts[s + 1] - q0, o.k_starts[s + 1] - k0
    for i = 0, queries - 1 do
      local at = i + keys - queries
      for h = 0, o.heads - 1 do
        local kv, scores, most, sum = math.floor(h / group), {}, -math.huge, 0
        for j = 0, keys - 1 do
          if sees(o, at, j) then
            local dot = 0
            for d = 1, o.size do dot = dot + q[((q0 + i) * o.heads + h) * o.size + d] * k[((k0 + j) * o.kv_heads + kv) * o.size + d] end
            scores[j] = logit(o, dot, h, at, j)
            most = math.max(most, scores[j])
          end
        end
        for _, x in pairs(scores) do sum = sum + math.exp(x - most) end
        if o.sinks then
          local top = math.max(most, o.sinks[h + 1])
          sum, most = sum * math.exp(most - top) + math.exp(o.sinks[h + 1] - top), top
        end
        local row = ((q0 + i) * o.heads + h) * values
        for d = 1, values do y[row + d] = 0 end
        for j = 0, keys - 1 do
          if scores[j] then
            local p = math.exp(scores[j] - most) / sum
            for d = 1, values do y[row + d] = y[row + d] + p * v[((k0 + j) * o.kv_heads + kv) * values + d] end
          end
        end
        lse[(q0 + i) * o.heads + h + 1] = most + math.log(sum)
      end
    end
  end
  return y, lse
end

-- Its gradients for dy.
local function backward(dy, q, k, v, o)
  local dq, dk, dv = {}, {}, {}
  for i = 1, #q do dq[i] = 0 end
  for i = 1, #k do dk[i] = 0 end
  for i = 1, #v do dv[i] = 0 end
  local y, lse = attention(q, k, v, o)
  local values = o.values or o.size
  local group = o.heads / o.kv_heads
  for s = 1, #o.q_starts - 1 do
    local q0, k0 = o.q_starts[s], o.k_starts[s]
    local queries, keys = o.q_starts[s + 1] - q0, o.k_starts[s + 1] - k0
    for i = 0, queries - 1 do
      local at = i + keys - queries
      for h = 0, o.heads - 1 do
        local kv, head, own = math.floor(h / group), (q0 + i) * o.heads + h, 0
        local row, out = head * o.size, head * values
        for d = 1, values do own = own + dy[out + d] * y[out + d] end
        for j = 0, keys - 1 do
          if sees(o, at, j) then
            local col, value, dot, dp = ((k0 + j) * o.kv_heads + kv) * o.size, ((k0 + j) * o.kv_heads + kv) * values, 0, 0
            for d = 1, o.size do dot = dot + q[row + d] * k[col + d] end
            for d = 1, values do dp = dp + dy[out + d] * v[value + d] end
            local x, slope = logit(o, dot, h, at, j)
            local p = math.exp(x - lse[head + 1])
            local ds = p * (dp - own) * slope
            for d = 1, values do dv[value + d] = dv[value + d] + p * dy[out + d] end
            for d = 1, o.size do
              dk[col + d] = dk[col + d] + ds * q[row + d]
              dq[row + d] = dq[row + d] + ds * k[col + d]
            end
          end
        end
      end
    end
  end
  return dq, dk, dv
end

-- A case: tokens cut from wider tensors, so that heads are strided in the token dimension.
local function case(heads, kv_heads, size, causal, window, q_starts, k_starts)
  k_starts = k_starts or q_starts
  return { heads = heads, kv_heads = kv_heads, size = size, causal = causal, window = window, q_starts = q_starts, k_starts = k_starts,
    scale = size ^ -0.5 }
end

local function operands(o, dtype)
  local tokens, keys = o.q_starts[#o.q_starts], o.k_starts[#o.k_starts]
  local q = random(dtype, { tokens, o.heads + 1, o.size }, 1, -2, 2):narrow(2, 2, o.heads)
  local kv = random(dtype, { keys, 2 * o.kv_heads, o.size }, 2, -2, 2)
  local v = kv:narrow(2, o.kv_heads + 1, o.kv_heads)
  if o.values then v = random(dtype, { keys, o.kv_heads, o.values + 3 }, 4, -2, 2):narrow(3, 2, o.values) end
  return q, kv:narrow(2, 1, o.kv_heads), v, random(dtype, { tokens, o.heads, o.values or o.size }, 3)
end

-- The part of a case that is more than a causal window, as the operations take it.
local function more(o)
  return { cap = o.cap, chunk = o.chunk, zero = o.zero, bias = o.bias and core.from_table(o.bias), sinks = o.sinks and core.from_table(o.sinks) }
end
local function run(o, q, k, v)
  return ops.attention(q, k, v, ints(o.q_starts), ints(o.k_starts), o.causal, o.window, o.scale, true, more(o))
end
local function run_backward(o, dy, y, lse, q, k, v)
  return ops.attention_backward(dy, y, lse, q, k, v, ints(o.q_starts), ints(o.k_starts), o.causal, o.window, o.scale, more(o))
end

-- A bias by distance for each head, and what a query's own key finds in it.
local function biased(o, before, after)
  o.bias, o.zero = {}, before
  for h = 1, o.heads do
    o.bias[h] = {}
    for d = -before, after do o.bias[h][d + before + 1] = math.sin(d * h) - 0.1 * h * math.abs(d) end
  end
  return o
end
local function sunk(o)
  o.sinks = {}
  for h = 1, o.heads do o.sinks[h] = 3 * h - 4 end
  return o
end
local function with(o, values)
  for k, v in pairs(values) do o[k] = v end
  return o
end

local function check(o)
  for _, dtype in ipairs(floats) do
    local q, k, v, dy = operands(o, dtype)
    local fq, fk, fv, fdy = flat(q), flat(k), flat(v), flat(dy)
    local y, lse = run(o, q, k, v)
    local want, want_lse = attention(fq, fk, fv, o)
    local exact = dtype == "f32"
    near(y, want, exact and 1e-5 or 0.01, exact and 1e-5 or 0.01, "y")
    near(lse, want_lse, exact and 1e-5 or 0.001, exact and 1e-5 or 0.001, "lse")
    local dq, dk, dv = run_backward(o, dy, y, lse, q, k, v)
    local wq, wk, wv = backward(fdy, fq, fk, fv, o)
    near(dq, wq, exact and 1e-5 or 0.02, exact and 1e-5 or 0.02, "dq")
    near(dk, wk, exact and 1e-5 or 0.02, exact and 2e-5 or 0.04, "dk")
    near(dv, wv, exact and 1e-5 or 0.02, exact and 2e-5 or 0.04, "dv")
  end
end

describe("attention", function()
  it("of one token", function() check(case(1, 1, 1, true, 0, { 0, 1 })) end)
  it("causal, grouped heads", function() check(case(6, 2, 16, true, 0, { 0, 45 })) end)
  it("of every key", function() check(case(2, 2, 33, false, 0, { 0, 37 })) end)
  it("of a window", function()
    for _, window in ipairs { 1, 5, 33, 100 } do check(case(2, 1, 8, true, window, { 0, 70 })) end
    check(case(2, 1, 8, false, 7, { 0, 40 }))
  end)
  it("of packed sequences, one of them empty", function()
    check(case(3, 1, 20, true, 0, { 0, 1, 8, 8, 41, 74 }))
    check(case(2, 2, 16, true, 6, { 0, 17, 50 }))
  end)
  it("of more keys than queries", function()
    check(case(4, 2, 16, true, 0, { 0, 3, 20 }, { 0, 120, 137 }))
    check(case(2, 1, 16, true, 10, { 0, 1, 34 }, { 0, 7, 108 }))
    check(case(2, 1, 16, false, 0, { 0, 0, 5 }, { 0, 9, 14 })) -- keys that nobody asks have gradients of 0
  end)
  it("of head sizes that are no whole vectors", function()
    for _, size in ipairs { 7, 64, 80, 96, 112, 128, 130, 256 } do check(case(2, 1, size, true, 0, { 0, 35 })) end
  end)
  it("across tiles of keys", function() check(case(1, 1, 8, true, 0, { 0, 200, 301 })) end)

  it("of capped scores", function()
    check(with(case(4, 2, 16, true, 0, { 0, 45, 150 }), { cap = 1.5 }))
    check(with(case(2, 1, 20, false, 7, { 0, 40 }), { cap = 0.5 }))
    check(with(case(2, 1, 64, true, 9, { 0, 3, 40 }, { 0, 120, 157 }), { cap = 2 }))
  end)
  it("with a bias by distance, clamped at its ends", function()
    check(biased(case(4, 2, 16, true, 0, { 0, 45, 150 }), 20, 0))
    check(biased(case(3, 3, 8, false, 0, { 0, 5, 41 }), 7, 11))
    check(biased(case(2, 1, 16, true, 12, { 0, 1, 34 }, { 0, 7, 108 }), 200, 200))
    check(with(biased(case(2, 2, 16, true, 0, { 0, 70 }), 5, 2), { cap = 1 }))
  end)
  it("with sinks", function()
    check(sunk(case(4, 2, 16, true, 0, { 0, 1, 45 })))
    check(sunk(with(biased(case(2, 1, 24, true, 8, { 0, 33 }), 3, 3), { cap = 2 })))
  end)
  it("of chunks", function()
    for _, chunk in ipairs { 1, 7, 32, 100 } do check(with(case(2, 1, 8, true, 0, { 0, 33, 150 }), { chunk = chunk })) end
    check(with(case(2, 1, 8, true, 5, { 0, 3, 40 }, { 0, 120, 157 }), { chunk = 8 }))
  end)
  it("of values with a size of their own", function()
    for _, sizes in ipairs { { 24, 16 }, { 7, 40 }, { 192, 128 } } do
      check(with(case(4, 2, sizes[1], true, 0, { 0, 40 }), { values = sizes[2] }))
    end
    check(sunk(with(case(2, 2, 12, false, 0, { 0, 3, 20 }, { 0, 120, 137 }), { values = 33 })))
  end)

  it("of no tokens", function()
    local o = case(2, 1, 8, true, 0, { 0, 0 })
    local q, k, v, dy = operands(o, "f32")
    local y, lse = run(o, q, k, v)
    near(y, {})
    for _, g in ipairs { run_backward(o, dy, y, lse, q, k, v) } do near(g, {}) end
  end)

  it("of large scores", function()
    local o = case(1, 1, 8, true, 0, { 0, 60 })
    o.scale = 40 -- of hundreds: their own rounding in f32 is what the tolerance is for
    local q, k, v, dy = operands(o, "f32")
    local y, lse = run(o, q, k, v)
    near(y, (attention(flat(q), flat(k), flat(v), o)), 1e-3, 1e-3)
    for _, g in ipairs { run_backward(o, dy, y, lse, q, k, v) } do
      local _, bad = ops.total(g, false)
      assert.equal(0, bad)
    end
  end)

  it("NaN stays with the queries that see it", function()
    local o = case(1, 1, 8, true, 0, { 0, 40 })
    local q, k, v = operands(o, "f32")
    k = k:contiguous()
    k:select(1, 21):fill(0 / 0)
    local y = run(o, q, k, v):totable()
    for i = 1, 40 do assert.equal(i >= 21, y[i][1][1] ~= y[i][1][1]) end
  end)

  it("gives a sequence the same bits alone, packed, and query by query, whatever the threads", function()
    local function full(...) return sunk(biased(with(case(...), { cap = 2, chunk = 150, values = 48 }), 60, 0)) end
    for i, dtype in ipairs { "f32", "bf16", "f32", "bf16" } do
      local case = i > 2 and full or case -- luacheck: ignore
      local o = case(4, 2, 80, true, 0, { 0, 33, 233, 300 })
      local q, k, v, dy = operands(o, dtype)
      local y, lse, dq, dk, dv = reference.any_threads(function()
        local y, lse = run(o, q, k, v)
        return y, lse, run_backward(o, dy, y, lse, q, k, v)
      end)
      local function cut(t) return t:narrow(1, 34, 200) end
      local alone = case(4, 2, 80, true, 0, { 0, 200 })
      local y1, lse1 = run(alone, cut(q), cut(k), cut(v))
      assert.equal(reference.bits(cut(y), cut(lse)), reference.bits(y1, lse1))
      local dq1, dk1, dv1 = run_backward(alone, cut(dy), y1, lse1, cut(q), cut(k), cut(v))
      assert.equal(reference.bits(cut(dq), cut(dk), cut(dv)), reference.bits(dq1, dk1, dv1))
      for _, n in ipairs { 1, 5, 32, 150 } do -- the last n queries against all keys
        local last = case(4, 2, 80, true, 0, { 0, n }, { 0, 200 })
        assert.equal(reference.bits(y1:narrow(1, 201 - n, n)), reference.bits((run(last, cut(q):narrow(1, 201 - n, n), cut(k), cut(v)))))
      end
    end
  end)

  it("takes memory that grows with the tokens, not with their square", function()
    local function peak(tokens)
      local o = case(1, 1, 64, true, 0, { 0, tokens })
      local q, k, v, dy = operands(o, "f32")
      collectgarbage()
      collectgarbage()
      local used = core.memory().used
      core.reset_peak()
      local y, lse = run(o, q, k, v)
      local g = { run_backward(o, dy, y, lse, q, k, v) }
      for _, t in ipairs { y, lse, unpack(g) } do t:free() end
      return core.memory().peak - used
    end
    local before = core.threads()
    core.set_threads(2)
    local short, long = peak(1024), peak(4096)
    core.set_threads(before)
    assert(long < 4.2 * short, ("%d and %d bytes"):format(short, long))
    assert(long < 4096 * 4096) -- a quarter of one f32 matrix of scores
  end)

  it("leaves nothing half done when memory is short", function()
    local o = case(2, 1, 32, true, 0, { 0, 150 })
    local q, k, v, dy = operands(o, "f32")
    local y, lse = run(o, q, k, v)
    assert(reference.nothing_half_done(function() return { core.zeros("f32", { 1 }) } end, function()
      for _, t in ipairs { run_backward(o, dy, y, lse, q, k, v) } do t:free() end
    end) > 0)
  end)

  it("refuses what does not fit", function()
    local q, k = random("f32", { 5, 4, 8 }, 1), random("f32", { 5, 3, 8 }, 2)
    assert.error_matches(function() ops.attention(q, k, k, ints { 0, 5 }, ints { 0, 5 }, true, 0, 1) end, "divides theirs")
    assert.error_matches(function() ops.attention(q, q, q, ints { 0, 4 }, ints { 0, 5 }, true, 0, 1) end, "starts end at 4")
    assert.error_matches(function() ops.attention(q, q, q, ints { 0, 3, 5 }, ints { 0, 2, 5 }, true, 0, 1) end, "fewer keys than queries")
    assert.error_matches(function() ops.attention(q, q, q, ints { 0, 4, 2, 5 }, ints { 0, 2, 3, 5 }, true, 0, 1) end, "must not decrease")
    local function with_more(t, causal) return function() ops.attention(q, q, q, ints { 0, 5 }, ints { 0, 5 }, causal, 0, 1, false, t) end end
    assert.error_matches(with_more({ bias = random("f32", { 3, 5 }, 1), zero = 0 }, true), "4 heads")
    assert.error_matches(with_more({ bias = random("f32", { 4, 5 }, 1), zero = 5 }, true), "'zero'")
    assert.error_matches(with_more({ bias = random("f32", { 4, 5 }, 1) }, true), "'zero'")
    assert.error_matches(with_more({ sinks = random("f32", { 3 }, 1) }, true), "f32 of 4")
    assert.error_matches(with_more({ cap = -1 }, true), "cap")
    assert.error_matches(with_more({ chunk = 4 }, false), "causal")
    assert.error_matches(function() ops.attention(q, q, k, ints { 0, 5 }, ints { 0, 5 }, true, 0, 1) end, "keys' dtype, tokens and heads")
    assert.error_matches(function() ops.attention(q, q:to "bf16", q:to "bf16", ints { 0, 5 }, ints { 0, 5 }, true, 0, 1) end, "dtype")
  end)
end)

describe("attention of one query against a cache", function()
  it("is attention's last row", function()
    for _, dtype in ipairs(floats) do
      for _, size in ipairs { 1, 7, 33, 64, 80, 96, 112, 130, 256 } do
        for _, heads in ipairs { { 1, 1 }, { 3, 1 }, { 8, 2 }, { 5, 1 }, { 7, 1 } } do
          local lengths = { 600, 0, 1, 257, 33 }
          if size > 64 or heads[1] > 3 then lengths = { 40, 0, 1, 33 } end
          local capacity = lengths[1] + 3
          local k, v = random(dtype, { #lengths, capacity, heads[2], size }, 1), random(dtype, { #lengths, capacity, heads[2], size }, 2)
          local q = random(dtype, { #lengths, heads[1] + 2, size }, 3):narrow(2, 2, heads[1])
          for _, window in ipairs { 0, 20 } do
            local y = ops.attention_decode(q, k, v, ints(lengths), window, 0.2)
            for s, n in ipairs(lengths) do
              if n == 0 then
                near(y:narrow(1, s, 1), 0)
              else
                local o = case(heads[1], heads[2], size, true, window, { 0, 1 }, { 0, n })
                o.scale = 0.2
                local want = attention(flat(q:narrow(1, s, 1)), flat(k:select(1, s):narrow(1, 1, n)),
                  flat(v:select(1, s):narrow(1, 1, n)), o)
                near(y:narrow(1, s, 1), want, nil, 3e-6, "decode")
              end
            end
          end
        end
      end
    end
  end)

  it("is attention's last row with all that a mask can add, and values of their own size", function()
    local lengths = { 600, 0, 1, 257, 33 }
    for _, dtype in ipairs(floats) do
      for _, heads in ipairs { { 3, 1 }, { 8, 2 } } do
        for _, sizes in ipairs { { 40, 24 }, { 17, 64 } } do
          local o = sunk(biased(with(case(heads[1], heads[2], sizes[1], true, 0, { 0, 1 }), { values = sizes[2], cap = 1.5, scale = 0.3 }), 40, 0))
          local k, v = random(dtype, { 5, 601, heads[2], sizes[1] }, 1), random(dtype, { 5, 601, heads[2], sizes[2] }, 2)
          local q = random(dtype, { 5, heads[1], sizes[1] }, 3, -3, 3)
          for _, chunk in ipairs { 100, 256 } do
            o.chunk = chunk
            local y = ops.attention_decode(q, k, v, ints(lengths), 0, o.scale, more(o))
            for s, n in ipairs(lengths) do
              local want = 0
              if n > 0 then
                o.k_starts = { 0, n }
                want = attention(flat(q:narrow(1, s, 1)), flat(k:select(1, s):narrow(1, 1, n)), flat(v:select(1, s):narrow(1, 1, n)), o)
              end
              near(y:narrow(1, s, 1), want, nil, 3e-6, "decode")
            end
          end
        end
      end
    end
  end)

  it("takes heads of 512 elements", function()
    local q, k, v = random("bf16", { 1, 4, 512 }, 1), random("bf16", { 1, 30, 1, 512 }, 2), random("bf16", { 1, 30, 1, 512 }, 3)
    local o = case(4, 1, 512, true, 0, { 0, 1 }, { 0, 30 })
    near(ops.attention_decode(q, k, v, ints { 30 }, 0, o.scale), (attention(flat(q), flat(k), flat(v), o)), nil, 3e-6)
  end)

  it("gives the same bits for any threads, sequences and capacity", function()
    for _, dtype in ipairs(floats) do
      local q, k, v = random(dtype, { 3, 6, 80 }, 1), random(dtype, { 3, 1000, 2, 80 }, 2), random(dtype, { 3, 1000, 2, 80 }, 3)
      local y = reference.any_threads(function() return ops.attention_decode(q, k, v, ints { 1000, 30, 700 }, 0, 0.1) end)
      local function short(t) return t:narrow(1, 3, 1):narrow(2, 1, 700):contiguous() end
      assert.equal(reference.bits(y:narrow(1, 3, 1)), reference.bits(ops.attention_decode(q:narrow(1, 3, 1), short(k), short(v),
        ints { 700 }, 0, 0.1)))
    end
  end)

  it("refuses what does not fit", function()
    local q, k = random("f32", { 2, 4, 8 }, 1), random("f32", { 2, 5, 2, 8 }, 2)
    assert.error_matches(function() ops.attention_decode(q, k, k, ints { 6, 1 }, 0, 1) end, "outside 0..5")
    assert.error_matches(function() ops.attention_decode(q, k, k, ints { -1, 1 }, 0, 1) end, "outside 0..5")
    assert.error_matches(function() ops.attention_decode(q, k, k, ints { 1 }, 0, 1) end, "expected i32 of 2")
    local wide = random("f32", { 1, 2, 1, 520 }, 1)
    assert.error_matches(function() ops.attention_decode(random("f32", { 1, 1, 520 }, 1), wide, wide, ints { 1 }, 0, 1) end,
      "512 are the most")
  end)

  reference.every_instruction_set(it, pending)
end)
