local core = require "onn.core.tensor"
local ops = require "onn.core.ops"
local recorded = require "onn.ops"
local reference = require "tests.kernels.reference"
local tape = require "onn.autograd.tape"
local random, gapped, flat, near, floats, ints = reference.random, reference.gapped, reference.flat, reference.near, reference.floats,
  reference.ints
local nan = 0 / 0

-- Gradients of sum(weights * f(x)) with respect to the tensors, by the tape.
local function gradients(list, f, weights)
  local t = tape.new()
  for _, x in ipairs(list) do t:watch(x) end
  local y = t:run(f)
  local grads, result = t:backward { [y] = weights }, {}
  for k, x in ipairs(list) do result[k] = grads[x] end
  return result
end

describe("routing to experts", function()
  it("finds the largest of rows, in order", function()
    for _, dtype in ipairs(floats) do
      for _, n in ipairs { 1, 7, 64, 130 } do
        local x = gapped(dtype, 5, n, n)
        local k = math.min(n, 6)
        local values, index = ops.topk(x, k)
        local rows, got, at = x:contiguous():totable(), values:totable(), index:totable()
        for r = 1, 5 do
          local order = {}
          for i = 1, n do order[i] = i end
          table.sort(order, function(a, b) return rows[r][a] > rows[r][b] or (rows[r][a] == rows[r][b] and a < b) end)
          for j = 1, k do
            assert.equal(order[j] - 1, at[r][j])
            assert.equal(rows[r][order[j]], got[r][j])
          end
        end
      end
    end
  end)

  it("takes the first of equals, and NaN for the largest", function()
    local _, index = ops.topk(core.from_table { { 1, 2, 2, 1, 2 }, { 0, nan, 5, nan, 7 }, { -1, -1, -1, -1, -1 } }, 4)
    assert.same({ { 1, 2, 4, 0 }, { 1, 3, 4, 2 }, { 0, 1, 2, 3 } }, index:totable())
    assert.error_matches(function() ops.topk(random("f32", { 2, 3 }, 1), 4) end, "from 0 to 3")
  end)

  it("picks columns, with their gradients", function()
    for _, dtype in ipairs(floats) do
      local x, index, dy = gapped(dtype, 3, 9, 1), core.from_table({ { 8, 0 }, { 4, 4 }, { 1, 7 } }, "i32"), random(dtype, { 3, 2 }, 2)
      local rows, d = x:contiguous():totable(), dy:totable()
      near(ops.pick(x, index), { rows[1][9], rows[1][1], rows[2][5], rows[2][5], rows[3][2], rows[3][8] }, 0, 0)
      local want = {}
      for i = 1, 27 do want[i] = 0 end
      want[9], want[1], want[14], want[20], want[26] = d[1][1], d[1][2], d[2][1] + d[2][2], d[3][1], d[3][2]
      near(gradients({ x }, function() return recorded.pick(x, index) end, dy)[1], want)
    end
    assert.error_matches(function() ops.pick(random("f32", { 1, 3 }, 1), core.from_table({ { 3 } }, "i32")) end, "outside 0..2")
    assert.error_matches(function() ops.pick(random("f32", { 2, 3 }, 1), core.from_table({ { 2 } }, "i32")) end, "for each row")
  end)

  it("gives a gradient to the largest alone", function()
    local x, dy = core.from_table { { 1, 5, 2, 4 }, { 9, 0, 3, 3 } }, random("f32", { 2, 2 }, 2)
    local d = dy:totable()
    near(gradients({ x }, function() return (recorded.topk(x, 2)) end, dy)[1], { 0, d[1][1], 0, d[1][2], d[2][1], 0, d[2][2], 0 }, 0, 0)
  end)

  it("groups the elements of an index", function()
    local order, starts = ops.group(core.from_table({ { 3, 0 }, { 1, 3 }, { 3, 1 } }, "i32"), 5)
    assert.same({ 1, 2, 5, 0, 3, 4 }, order:totable())
    assert.same({ 0, 1, 3, 3, 6, 6 }, starts:totable())
    order, starts = ops.group(core.new("i32", { 0, 2 }), 2)
    assert.same({}, order:totable())
    assert.same({ 0, 0, 0 }, starts:totable())
    assert.error_matches(function() ops.group(ints { 0, 2 }, 2) end, "outside 0..1")
  end)

  it("gathers rows and adds them where they came from, with gradients", function()
    for _, dtype in ipairs(floats) do
      local x, index, dy = random(dtype, { 4, 33 }, 1), ints { 2, 0, 2, 3, 2 }, random(dtype, { 5, 33 }, 2)
      local y = recorded.gather_rows(x, index)
      for n, from in ipairs(index:totable()) do assert.equal(reference.bits(x:narrow(1, from + 1, 1)), reference.bits(y:narrow(1, n, 1))) end
      local function sums(t) -- the f32 sums in their order
        local want = core.zeros("f32", { 4, 33 })
        for n, to in ipairs(index:totable()) do
          local row = want:narrow(1, to + 1, 1)
          row:copy(ops.binary(row, t:narrow(1, n, 1):to "f32", "add"))
        end
        return want:to(dtype)
      end
      assert.equal(reference.bits(sums(dy)), reference.bits(gradients({ x }, function() return recorded.gather_rows(x, index) end, dy)[1]))
      assert.equal(reference.bits(sums(dy)), reference.bits(recorded.scatter_add_rows(dy, index, 4)))
      local back = gradients({ dy }, function() return recorded.scatter_add_rows(dy, index, 4) end, x)[1]
      assert.equal(reference.bits(y), reference.bits(back))
    end
  end)

  it("lays tensors one after another, with gradients", function()
    local a, b, c, dy = random("f32", { 2, 5 }, 1), random("f32", { 0, 5 }, 2), random("f32", { 3, 5 }, 3), random("f32", { 5, 5 }, 4)
    local y = recorded.concat_rows { a, b, c }
    assert.equal(reference.bits(a, c), reference.bits(y:narrow(1, 1, 2), y:narrow(1, 3, 3)))
    local grads = gradients({ a, c }, function() return recorded.concat_rows { a, b, c } end, dy)
    assert.equal(reference.bits(dy:narrow(1, 1, 2), dy:narrow(1, 3, 3)), reference.bits(grads[1], grads[2]))
  end)

  it("runs a mixture of experts as a sum over tokens would", function()
    local tokens, experts, k, width = 20, 4, 2, 9
    local x, router, weights = random("f32", { tokens, width }, 1), random("f32", { experts, width }, 2, -3, 3), {}
    for e = 1, experts do weights[e] = random("f32", { width, width }, 10 + e) end
    local function mixture()
      local p, index = recorded.topk(recorded.softmax(recorded.linear(x, router)), k)
      local order, starts = ops.group(index, experts)
      local rows = recorded.gather_rows(x, ops.binary(order, ints { k }, "div"))
      local parts, at = {}, starts:totable()
      for e = 1, experts do
        if at[e + 1] > at[e] then parts[#parts + 1] = recorded.linear(recorded.narrow(rows, 1, at[e] + 1, at[e + 1] - at[e]), weights[e]) end
      end
      local scales = recorded.gather_rows(recorded.view(p, { tokens * k, 1 }), order)
      return recorded.scatter_add_rows(recorded.mul(recorded.concat_rows(parts), scales), ops.binary(order, ints { k }, "div"), tokens)
    end
    local fx, fr, fw = flat(x), flat(router), {}
    for e = 1, experts do fw[e] = flat(weights[e]) end
    local _, chosen = ops.topk(ops.linear(x, router), k)
    chosen = chosen:totable()
    local function plain(v) -- the experts chosen stay as they are: a step across a border is no gradient
      local y = {}
      for t = 0, tokens - 1 do
        local p, sum = {}, 0
        for e = 1, experts do
          local dot = 0
          for i = 1, width do dot = dot + v[t * width + i] * fr[(e - 1) * width + i] end
          p[e] = math.exp(dot)
          sum = sum + p[e]
        end
        for i = 1, width do
          y[t * width + i] = 0
          for _, e in ipairs(chosen[t + 1]) do
            local dot = 0
            for j = 1, width do dot = dot + v[t * width + j] * fw[e + 1][(i - 1) * width + j] end
            y[t * width + i] = y[t * width + i] + p[e + 1] / sum * dot
          end
        end
      end
      return y
    end
    near(mixture(), plain(fx), 1e-5, 1e-5)
    local dy = random("f32", { tokens, width }, 30)
    local fdy = flat(dy)
    near(gradients({ x }, mixture, dy)[1], reference.gradient(function(v) return reference.dot(fdy, plain(v)) end, fx), 1e-5, 2e-5)
  end)

  it("gives the same bits for any threads", function()
    local x, dy, index = random("f32", { 500, 128 }, 1), random("f32", { 900, 128 }, 2), {}
    for n = 1, 900 do index[n] = (n * 7919) % 500 end
    reference.any_threads(function()
      local values, at = ops.topk(x, 8)
      return values, at, recorded.scatter_add_rows(dy, ints(index), 500), recorded.gather_rows(x, ints(index))
    end)
  end)

  reference.every_instruction_set(it, pending)
end)
