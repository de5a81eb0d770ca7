local core = require "onn.core.tensor"
local ops = require "onn.core.ops"
local reference = require "tests.kernels.reference"
local random, gapped, flat, floats, ints = reference.random, reference.gapped, reference.flat, reference.floats, reference.ints

-- c (m, n) and the sizes of its terms: sum over k of a(i, k) b(j, k). by_rows(t, width) and by_columns(t, width) say how the
-- elements lie in a table.
local function product(m, n, depth, a, b)
  local c, size = {}, {}
  local at, a_row, a_step, bt, b_row, b_step = a[1], a[2], a[3], b[1], b[2], b[3]
  for i = 0, m - 1 do
    for j = 0, n - 1 do
      local sum, s = 0, 0
      for k = 0, depth - 1 do
        local t = at[i * a_row + k * a_step + 1] * bt[j * b_row + k * b_step + 1]
        sum, s = sum + t, s + math.abs(t)
      end
      c[i * n + j + 1], size[i * n + j + 1] = sum, s
    end
  end
  return c, size
end

local function by_rows(values, width) return { values, width, 1 } end
local function by_columns(values, width) return { values, 1, width } end

-- |got - want| within one rounding, and a share of the terms' sizes: f32 arithmetic, or what went through bf16 on the way.
local function close(got, want, size, coarse, what)
  local values, rel = flat(got), got:dtype() == "f32" and 2e-6 or 0.0041
  assert.equal(#want, #values)
  for i = 1, #values do
    local within = math.abs(values[i] - want[i]) <= rel * math.abs(want[i]) + size[i] * (coarse and 0.005 or 3e-6) + 1e-30
    if not within then -- NaN is not
      error(("%s, element %d of %s: %.9g, %.9g wanted"):format(what, i, got:describe(), values[i], want[i]), 2)
    end
  end
end

local function sum(a, b, factor)
  local c = {}
  for i = 1, #a do c[i] = a[i] + (factor or 1) * b[i] end
  return c
end

-- A weight (out, width) of a dtype, by rows or turned.
local function weight(dtype, out, width, seed, turned)
  local base = dtype == "f16" and "f32" or dtype
  local w = turned and random(base, { width, out }, seed) or random(base, { out, width }, seed)
  w = w:to(dtype)
  return turned and w:transpose(1, 2) or w
end

local pairs_of = { { "f32", "f32" }, { "f32", "bf16" }, { "f32", "f16" }, { "bf16", "bf16" } }
local shapes = { { 1, 1, 1, 1 }, { 3, 7, 17, 3 }, { 13, 33, 65, 8 }, { 33, 65, 33, 17 }, { 2, 130, 7, 40 } } -- rows, in, out, rank

local function each(f)
  for _, shape in ipairs(shapes) do
    for _, dtypes in ipairs(pairs_of) do
      for _, turned in ipairs { false, true } do f(shape[1], shape[2], shape[3], dtypes[1], dtypes[2], turned, shape[4]) end
    end
  end
end

describe("linear", function()
  it("with a bias, by both kernels", function()
    each(function(rows, width, out, xd, wd, turned)
      local x, w, bias = gapped(xd, rows, width, 1), weight(wd, out, width, 2, turned), random("f32", { out }, 3)
      local want, size = product(rows, out, width, by_rows(flat(x), width), by_rows(flat(w), width))
      local fb, with = flat(bias), {}
      for i = 1, #want do with[i] = want[i] + fb[(i - 1) % out + 1] end
      local what = ("%d x %d x %d %s %s%s"):format(rows, width, out, xd, wd, turned and " turned" or "")
      close(ops.linear(x, w), want, size, false, what)
      close(ops.linear(x, w, bias), with, size, false, what)
      close(ops.linear(x, w, bias, nil, nil, nil, nil, "f32"), with, size, false, what)
      close(ops.linear_decode(x, w), want, size, false, "decode " .. what)
      close(ops.linear_decode(x, w, bias, nil, nil, nil, "f32"), with, size, false, "decode " .. what)
    end)
  end)

  it("with an adapter, forward and backward", function()
    each(function(rows, width, out, xd, wd, turned, rank)
      local x, w = gapped(xd, rows, width, 1), weight(wd, out, width, 2, turned)
      local a, b, other = random(xd, { rank, width }, 4), random(xd, { out, rank }, 5), gapped(xd, rows, width, 6)
      local coarse, scale = xd == "bf16", 0.5
      local fx, fw, fa, fb = flat(x), flat(w), flat(a), flat(b)
      local what = ("%d x %d x %d rank %d %s %s%s"):format(rows, width, out, rank, xd, wd, turned and " turned" or "")
      local base, base_size = product(rows, out, width, by_rows(fx, width), by_rows(fw, width))
      for _, source in ipairs { x, other } do
        local h, h_size = product(rows, rank, width, by_rows(flat(source), width), by_rows(fa, width))
        local low_rank = product(rows, out, rank, by_rows(h, rank), by_rows(fb, rank))
        local _, low_size = product(rows, out, rank, by_rows(h_size, rank), by_rows(fb, rank))
        local y, kept = ops.linear(x, w, nil, a, b, scale, source)
        close(kept, h, h_size, false, "h " .. what)
        close(y, sum(base, low_rank, scale), sum(base_size, low_size, scale), coarse, what)
        if source == x then close(ops.linear_decode(x, w, nil, a, b, scale), sum(base, low_rank, scale),
          sum(base_size, low_size, scale), coarse, "decode " .. what) end
      end
      local dy = gapped(xd, rows, out, 7)
      local fdy = flat(dy)
      local dbase, dbase_size = product(rows, width, out, by_rows(fdy, out), by_columns(fw, width))
      local dh, dh_size = product(rows, rank, out, by_rows(fdy, out), by_columns(fb, rank))
      local part = product(rows, width, rank, by_rows(dh, rank), by_columns(fa, width))
      local _, part_size = product(rows, width, rank, by_rows(dh_size, rank), by_columns(fa, width))
      for i = 1, #dh do dh[i] = dh[i] * scale end
      local low = {}
      for i = 1, #part do low[i] = part[i] * scale end
      local dx, gh = ops.linear_backward(dy, w, a, b, scale)
      close(gh, dh, dh_size, false, "dh " .. what)
      close(dx, sum(dbase, part, scale), sum(dbase_size, part_size), coarse, "dx " .. what)
      local dropped
      dx, gh, dropped = ops.linear_backward(dy, w, a, b, scale, nil, true)
      close(dx, dbase, dbase_size, false, "dx apart " .. what)
      close(gh, dh, dh_size, false, "dh apart " .. what)
      close(dropped, low, part_size, coarse, "dropped " .. what)
      local old = random(xd, { rows, width }, 8)
      local want = sum(sum(dbase, part, scale), flat(old))
      local same = ops.linear_backward(dy, w, a, b, scale, old)
      assert.equal(old, same)
      close(old, want, sum(dbase_size, part_size), coarse, "dx added to " .. what)
      local none
      none, gh, dropped = ops.linear_backward(dy, w, a, b, scale, nil, true, true)
      assert.is_nil(none)
      close(gh, dh, dh_size, false, "dh alone " .. what)
      close(dropped, low, part_size, coarse, "dropped alone " .. what)
    end)
  end)

  it("gradients of the adapter and of trained weights are added to", function()
    for _, shape in ipairs { { 1, 1, 1, 1 }, { 7, 33, 17, 4 }, { 300, 17, 33, 17 }, { 0, 5, 6, 2 } } do
      local rows, width, out, rank = unpack(shape)
      for _, dtype in ipairs(floats) do
        local x, dy = gapped(dtype, rows, width, 1), gapped(dtype, rows, out, 2)
        local h, dh, b = random(dtype, { rows, rank }, 3), random(dtype, { rows, rank }, 4), random(dtype, { out, rank }, 5)
        local starts = rows > 200 and ints { 0, 3, 3, 170, rows } or nil
        local da, db = core.new("f32", { rank, width }):fill(2), core.new("f32", { out, rank }):fill(-1)
        ops.lora_backward(da, db, dh, dy, h, x, b, 0.5, starts)
        local wa, sa = product(rank, width, rows, by_columns(flat(dh), rank), by_columns(flat(x), width))
        local wb, sb = product(out, rank, rows, by_columns(flat(dy), out), by_columns(flat(h), rank))
        for i = 1, #wa do wa[i] = wa[i] + 2 end
        for i = 1, #wb do wb[i] = wb[i] * 0.5 - 1 end
        close(da, wa, sa, false, "da")
        close(db, wb, sb, false, "db")
        local dw, dbias = core.new("f32", { out, width }):fill(3), core.new("f32", { out }):fill(4)
        ops.linear_backward_weight(dw, dbias, dy, x, starts)
        local ww, sw = product(out, width, rows, by_columns(flat(dy), out), by_columns(flat(x), width))
        for i = 1, #ww do ww[i] = ww[i] + 3 end
        close(dw, ww, sw, false, "dw")
        local bias, size = product(1, out, rows, { { 1 }, 0, 0 }, by_columns(flat(dy), out))
        for i = 1, #bias do bias[i] = bias[i] + 4 end
        close(dbias, bias, size, false, "dbias")
        ops.linear_backward_weight(nil, dbias, dy, x, starts)
        ops.linear_backward_weight(dw, nil, dy, x, starts)
      end
    end
  end)

  it("write into a given tensor, which may be columns of a larger one", function()
    for _, dtypes in ipairs { { "f32", "f32" }, { "bf16", "f32" }, { "bf16", "bf16" } } do
      for _, rows in ipairs { 1, 5, 40 } do
        local x, w = random(dtypes[1], { rows, 65 }, 1), random(dtypes[1], { 150, 65 }, 2)
        local a, b = random(dtypes[1], { 3, 65 }, 3), random(dtypes[1], { 150, 3 }, 4)
        for _, adapted in ipairs { false, true } do
          for name, run in pairs {
            linear = function(...) return (ops.linear(x, ...)) end,
            linear_decode = function(weights, bias, la, lb, scale, _, dtype, out)
              return ops.linear_decode(x, weights, bias, la, lb, scale, dtype, out)
            end,
          } do
            local whole = run(w, nil, adapted and a or nil, adapted and b or nil, 2, nil, dtypes[2])
            local y = core.new(dtypes[2], { rows, 150 }):fill(7)
            for first = 0, 149, 37 do -- tiles of w's rows make columns of y
              local n = math.min(37, 150 - first)
              local out = y:narrow(2, first + 1, n)
              local got = run(w:narrow(1, first + 1, n), nil, adapted and a or nil, adapted and b:narrow(1, first + 1, n) or nil, 2, nil,
                nil, out)
              assert.equal(out, got)
              local rest = y:narrow(2, first + n + 1, 150 - first - n)
              reference.near(rest, 7, 0, 0, name)
            end
            assert.equal(reference.bits(whole), reference.bits(y))
          end
        end
      end
    end
    local x, w = random("f32", { 4, 9 }, 1), random("f32", { 6, 9 }, 2)
    for _, out in ipairs { core.new("f32", { 4, 5 }), core.new("f32", { 3, 6 }), core.new("f32", { 4, 12 }):view { 4, 6, 2 }:select(3, 1) } do
      assert.error_matches(function() ops.linear(x, w, nil, nil, nil, nil, nil, nil, out) end, "expected rows of 6 for the output")
      assert.error_matches(function() ops.linear_decode(x, w, nil, nil, nil, nil, nil, out) end, "expected rows of 6 for the output")
    end
    assert.error_matches(function() ops.linear(x, w, nil, nil, nil, nil, nil, "bf16", core.new("f32", { 4, 6 })) end, "expected rows of 6")
  end)

  it("of no rows", function()
    for _, dtype in ipairs(floats) do
      local x, w, a, b = core.new(dtype, { 0, 9 }), random(dtype, { 5, 9 }, 1), random(dtype, { 2, 9 }, 2), random(dtype, { 5, 2 }, 3)
      assert.same({ 0, 5 }, (ops.linear(x, w, nil, a, b, 1)):shape())
      assert.same({ 0, 5 }, ops.linear_decode(x, w, nil, a, b, 1):shape())
      assert.same({ 0, 9 }, (ops.linear_backward(core.new(dtype, { 0, 5 }), w, a, b, 1)):shape())
    end
  end)

  it("gives a row the same bits alone and among others, whatever the threads", function()
    for _, dtypes in ipairs(pairs_of) do
      for _, turned in ipairs { false, true } do
        local x, w = random(dtypes[1], { 150, 257 }, 1), weight(dtypes[2], 190, 257, 2, turned)
        local bias, a, b = random("f32", { 190 }, 3), random(dtypes[1], { 8, 257 }, 4), random(dtypes[1], { 190, 8 }, 5)
        local dy = random(dtypes[1], { 150, 190 }, 6)
        local y, h, dx, dh, decoded = reference.any_threads(function()
          local y, h = ops.linear(x, w, bias, a, b, 0.5)
          local dx, dh = ops.linear_backward(dy, w, a, b, 0.5)
          return y, h, dx, dh, ops.linear_decode(x, w, bias, a, b, 0.5)
        end)
        for _, cut in ipairs { { 1, 1 }, { 2, 7 }, { 17, 33 }, { 86, 65 } } do
          local function part(t) return t:narrow(1, cut[1], cut[2]) end
          local y1, h1 = ops.linear(part(x), w, bias, a, b, 0.5)
          local dx1, dh1 = ops.linear_backward(part(dy), w, a, b, 0.5)
          assert.equal(reference.bits(part(y), part(h), part(dx), part(dh), part(decoded)),
            reference.bits(y1, h1, dx1, dh1, ops.linear_decode(part(x), w, bias, a, b, 0.5)))
        end
      end
    end
  end)

  it("gives the bits of the whole when the weight comes in tiles of its rows", function()
    local rows, width, out, rank, edges = 45, 300, 460, 8, { 0, 64, 320, 384, 460 }
    for _, dtypes in ipairs(pairs_of) do
      for _, adapted in ipairs { false, true } do
        local x, w, bias = random(dtypes[1], { rows, width }, 1), weight(dtypes[2], out, width, 2), random("f32", { out }, 3)
        local a, b = random(dtypes[1], { rank, width }, 4), random(dtypes[1], { out, rank }, 5)
        local dy, old = random(dtypes[1], { rows, out }, 6), random(dtypes[1], { rows, width }, 7)
        local function lora(t, from, n)
          if adapted then return a, t:narrow(1, from + 1, n), 0.5 end
          return nil, nil, nil
        end
        local la, lb, scale = lora(b, 0, out)
        local what = ("%s, %s%s"):format(dtypes[1], dtypes[2], adapted and ", adapter" or "")
        local y, h = ops.linear(x, w, bias, la, lb, scale)
        local tiled = core.new(dtypes[1], { rows, out })
        for i = 1, #edges - 1 do
          local from, n = edges[i], edges[i + 1] - edges[i]
          local ta, tb, ts = lora(b, from, n)
          local into = tiled:narrow(2, from + 1, n)
          local part, part_h = ops.linear(x, w:narrow(1, from + 1, n), bias:narrow(1, from + 1, n), ta, tb, ts, nil, nil, into)
          assert.equal(into, part)
          assert.equal(reference.bits(h), reference.bits(part_h), what)
        end
        assert.equal(reference.bits(y), reference.bits(tiled), what)
        for _, split in ipairs { false, true } do
          for _, add in ipairs { false, true } do
            local dx, dh, dropped = ops.linear_backward(dy, w, la, lb, scale, add and old:clone() or nil, split)
            local total, dh1, dropped1 = add and old:to "f32" or core.zeros("f32", { rows, width }), nil, nil
            if add and dtypes[1] == "f32" then total = old:clone() end
            for i = 1, #edges - 1 do
              local from, n = edges[i], edges[i + 1] - edges[i]
              local part, tile = dy:narrow(2, from + 1, n), w:narrow(1, from + 1, n)
              if i == 1 then
                _, dh1, dropped1 = ops.linear_backward(part, tile, la, lb, scale, total, split, false, dy)
              else
                ops.linear_backward(part, tile, nil, nil, nil, total)
              end
            end
            assert.equal(reference.bits(dx, dh, dropped), reference.bits(total:to(dtypes[1]), dh1, dropped1), what)
          end
        end
      end
    end
  end)

  it("takes a weight as it is stored, with the bits of one converted to bf16 before", function()
    for _, dtype in ipairs { "f32", "f16" } do
      for _, shape in ipairs { { 1, 1, 1 }, { 3, 7, 17 }, { 70, 130, 260 }, { 33, 700, 65 }, { 40, 640, 1100 }, { 150, 640, 640 } } do
        for _, turned in ipairs { false, true } do
          local rows, width, out = unpack(shape)
          local x, dy = gapped("bf16", rows, width, 1), gapped("bf16", rows, out, 2)
          local w = turned and random("f32", { width, out }, 3) or random("f32", { out, width }, 3)
          local flat_w = w:view({ w:numel() }) -- what rounding finds hard: ties, subnormals, overflow to infinity
          for i, v in ipairs { 1 + 2 ^ -8, 1 + 3 * 2 ^ -8, 2 ^ -24, -2 ^ -15, 65504, 2 ^ -127, 2 ^ -126 * (1 - 2 ^ -10) } do
            if i < w:numel() then flat_w:narrow(1, i, 1):fill(v) end
          end
          w = w:to(dtype)
          local converted = w:to "bf16"
          if turned then w, converted = w:transpose(1, 2), converted:transpose(1, 2) end
          local a, b = random("bf16", { 4, width }, 4), random("bf16", { out, 4 }, 5)
          local function all(weights)
            local y, h = ops.linear(x, weights, nil, a, b, 0.5)
            local dx, dh = ops.linear_backward(dy, weights, a, b, 0.5)
            return reference.bits(y, h, dx, dh, ops.linear_decode(x, weights, nil, a, b, 0.5, "f32"))
          end
          assert.equal(all(converted), all(w), ("%s %d x %d x %d%s"):format(dtype, rows, width, out, turned and " turned" or ""))
        end
      end
    end
    local x, w = random("bf16", { 2, 40 }, 1), random("f32", { 9, 40 }, 2)
    w:narrow(1, 3, 1):fill(0 / 0)
    for _, dtype in ipairs { "f32", "f16" } do
      for _, y in ipairs { (ops.linear(x, w:to(dtype))), ops.linear_decode(x, w:to(dtype)) } do
        local _, bad = ops.total(y, false)
        assert.equal(2, bad)
      end
    end
  end)

  it("gradients of weights are sums over a sequence's own tiles, whatever the threads", function()
    for _, dtype in ipairs(floats) do
      local x, dy, h, dh, b = random(dtype, { 300, 65 }, 1), random(dtype, { 300, 70 }, 2), random(dtype, { 300, 8 }, 3),
        random(dtype, { 300, 8 }, 4), random(dtype, { 70, 8 }, 5)
      local function run(grads, from, n, starts)
        local function part(t) return t:narrow(1, from, n) end
        ops.lora_backward(grads[1], grads[2], part(dh), part(dy), part(h), part(x), b, 0.5, starts)
        ops.linear_backward_weight(grads[3], grads[4], part(dy), part(x), starts)
      end
      local function grads() return { core.zeros("f32", { 8, 65 }), core.zeros("f32", { 70, 8 }), core.zeros("f32", { 70, 65 }),
        core.zeros("f32", { 70 }) } end
      local packed = { reference.any_threads(function()
        local g = grads()
        run(g, 1, 300, ints { 0, 130, 300 })
        return unpack(g)
      end) }
      local alone = grads()
      run(alone, 1, 130)
      run(alone, 131, 170)
      assert.equal(reference.bits(unpack(packed)), reference.bits(unpack(alone)))
    end
  end)

  it("NaN stays in its row", function()
    local x, w = random("f32", { 5, 33 }, 1), random("f32", { 17, 33 }, 2)
    x:select(1, 2):narrow(1, 33, 1):fill(0 / 0)
    for _, y in ipairs { (ops.linear(x, w)), ops.linear_decode(x, w) } do
      local _, bad = ops.total(y, false)
      assert.equal(17, bad)
      local second
      _, second = ops.total(y:narrow(1, 2, 1), false)
      assert.equal(17, second)
    end
  end)

  it("gradients are not half added when memory is short", function()
    local x, dy, h, dh, b = random("f32", { 300, 400 }, 1), random("f32", { 300, 900 }, 2), random("f32", { 300, 8 }, 3),
      random("f32", { 300, 8 }, 4), random("f32", { 900, 8 }, 5)
    assert(reference.nothing_half_done(function() return { core.zeros("f32", { 8, 400 }), core.zeros("f32", { 900, 8 }) } end,
      function(da, db) ops.lora_backward(da, db, dh, dy, h, x, b, 1) end) > 0)
    assert(reference.nothing_half_done(function() return { core.zeros("f32", { 900, 400 }), core.zeros("f32", { 900 }) } end,
      function(dw, dbias) ops.linear_backward_weight(dw, dbias, dy, x) end) > 0)
    local old = random("f32", { 300, 400 }, 9)
    local w, a = random("f32", { 900, 400 }, 6), random("f32", { 8, 400 }, 7)
    assert(reference.nothing_half_done(function() return { old:clone() } end,
      function(dx) for _, t in ipairs { select(2, ops.linear_backward(dy, w, a, b, 1, dx)) } do t:free() end end) > 0)
  end)

  it("refuses what does not fit", function()
    local x, w = random("f32", { 3, 9 }, 1), random("f32", { 5, 9 }, 2)
    assert.error_matches(function() ops.linear(x, random("f32", { 5, 8 }, 2)) end, "expected a weight")
    assert.error_matches(function() ops.linear(x, w, nil, nil, nil, nil, nil, nil, core.new("f32", { 3, 4 })) end, "for the output")
    assert.error_matches(function() ops.linear_backward(random("f32", { 3, 5 }, 1), w, nil, nil, nil, core.new("bf16", { 3, 9 })) end,
      "another shape or dtype")
    assert.error_matches(function() ops.linear(x, w:to "i8") end, "expected a weight")
    assert.error_matches(function() ops.linear(x, w, random("f32", { 4 }, 1)) end, "expected f32 of 5")
    assert.error_matches(function() ops.linear(x, w, nil, nil, nil, nil, nil, "i8") end, "expected f32 or bf16, got i8")
    assert.error_matches(function() ops.linear_decode(x, w, nil, nil, nil, nil, "f16") end, "expected f32 or bf16, got f16")
    assert.error_matches(function() ops.linear(x, w, nil, random("f32", { 2, 8 }, 1), random("f32", { 5, 2 }, 1), 1) end, "adapter")
    assert.error_matches(function() ops.linear_backward(x, w) end, "not as wide")
  end)
end)

describe("matmul", function()
  it("of any layouts", function()
    for _, dtype in ipairs(floats) do
      for _, shape in ipairs { { 1, 1, 1 }, { 7, 17, 33 }, { 33, 65, 7 }, { 5, 0, 3 }, { 0, 4, 3 } } do
        local m, k, n = unpack(shape)
        local as = { random(dtype, { m, k }, 1), random(dtype, { k, m }, 1):transpose(1, 2), random(dtype, { m, k, 2 }, 1):select(3, 2),
          random(dtype, { 1, k }, 1):expand(m, k) }
        local bs = { random(dtype, { k, n }, 2), random(dtype, { n, k }, 2):transpose(1, 2), gapped(dtype, k, n, 2) }
        for _, a in ipairs(as) do
          for _, b in ipairs(bs) do
            local want, size = product(m, n, k, by_rows(flat(a), k), by_columns(flat(b), n))
            close(ops.matmul(a, b), want, size, false, "matmul")
          end
        end
      end
    end
    assert.error_matches(function() ops.matmul(random("f32", { 2, 3 }, 1), random("f32", { 2, 3 }, 1)) end, "do not go together")
  end)

  reference.every_instruction_set(it, pending)
end)
