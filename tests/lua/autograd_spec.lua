-- Gradients of tensor expressions against finite differences, and what tensors do for people who type.
local autograd = require "onn.autograd"
local ops = require "onn.ops"
local tensor = require "onn.tensor"

-- The gradient of f with respect to every named parameter, by central differences on f32, beside value_and_grad's.
local function check(f, params, tolerance)
  local loss, grads = autograd.value_and_grad(f, params)
  assert.is_true(math.abs(f(params):item() - loss:item()) == 0)
  for name, p in pairs(params) do
    assert.same(p:shape(), grads[name]:shape())
    local values, got = p:clone():view { p:numel() }:totable(), grads[name]:contiguous():view { p:numel() }:totable()
    local step = 2 ^ -7
    for i = 1, #values do
      local function at(x)
        local moved = {}
        for k, v in ipairs(values) do moved[k] = k == i and x or v end
        local other = {}
        for k, v in pairs(params) do other[k] = k == name and tensor.from_table(moved, "f32"):view(p:shape()) or v end
        return f(other):item()
      end
      local slope = (at(values[i] + step) - at(values[i] - step)) / (2 * step)
      assert.is_true(math.abs(slope - got[i]) <= (tolerance or 2e-3) * math.max(1, math.abs(slope)),
        ("%s[%d]: %g, differences give %g"):format(name, i, got[i], slope))
    end
  end
  return loss, grads
end

describe("value_and_grad", function()
  local x, y = tensor.randn({ 3, 4 }, 1), tensor.randn({ 3, 2 }, 2)

  it("gives the loss and the gradients of a linear model", function()
    check(function(p) return (x:matmul(p.w) - y):square():mean "all" end, { w = tensor.randn({ 4, 2 }, 3) })
  end)

  it("reaches weights that products and tables take by a view of a trained tensor", function()
    local ids = tensor.from_table({ 1, 0, 1 }, "i32")
    check(function(p)
      local one = ops.linear(x, ops.transpose(ops.select(p.experts, 1, 2), 1, 2), ops.select(p.biases, 1, 2))
      local other = ops.linear(x, ops.transpose(ops.select(p.experts, 1, 1), 1, 2), ops.select(p.biases, 1, 1))
      return (ops.mul(one, other) + ops.embedding(ops.affine(p.table, 2, 1), ids, "f32")):square():mean "all"
    end, { experts = tensor.randn({ 2, 4, 2 }, 11), biases = tensor.randn({ 2, 2 }, 12), table = tensor.randn({ 2, 2 }, 13) })
  end)

  it("goes through operators, numbers and broadcast operands", function()
    check(function(p) return ((2 * p.a + p.b) / (p.c:square() + 1) - 3 - p.a * p.b):sum "all" end,
      { a = tensor.randn({ 3, 4 }, 4), b = tensor.randn({ 4 }, 5), c = tensor.randn({ 3, 1 }, 6) })
  end)

  it("goes through views: transpose, view, narrow, select, expand", function()
    check(function(p)
      local w = p.w:transpose(1, 2)
      local row = w:narrow(2, 2, 2):contiguous():view { 4 }
      return (row * p.s:expand { 4 } + w:select(1, 1):sum():view { 1 } * 0.5):square():sum "all"
    end, { w = tensor.randn({ 3, 2 }, 7), s = tensor.randn({ 1 }, 8) })
  end)

  for _, name in ipairs { "exp", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh", "square" } do
    it("goes through " .. name, function()
      check(function(p) return (p.a[name](p.a) * x):sum "all" end, { a = tensor.randn({ 3, 4 }, 9) })
    end)
  end

  it("goes through softmax and log", function()
    check(function(p) return (p.a:softmax():log() * x):mean "all" end, { a = tensor.randn({ 3, 4 }, 10) })
  end)

  it("adds up where a parameter is used twice", function()
    local _, grads = check(function(p) return (p.a * p.a + p.a):sum "all" end, { a = tensor.from_table({ 1, -2, 3 }, "f32") })
    assert.same({ 3, -3, 7 }, grads.a:totable())
  end)

  it("leaves parameters alone and what is constant without gradient", function()
    local a = tensor.from_table({ 1, 2 }, "f32")
    local function f(p) return (p.a * autograd.constant(function() return p.a * p.a end)):sum "all" end
    local _, grads = autograd.value_and_grad(f, { a = a })
    assert.same({ 1, 4 }, grads.a:totable())
    assert.same({ 1, 2 }, a:totable())
  end)

  it("refuses what has no gradient", function()
    local a = tensor.from_table({ 1, 2 }, "f32")
    assert.error_matches(function() autograd.value_and_grad(function(p) return p.a * 2 end, { a = a }) end, "a tensor of one element")
    assert.error_matches(function() autograd.value_and_grad(function(p) return p.a:fill(1):sum "all" end, { a = a }) end,
      "cannot be changed in place")
    assert.same({ 1, 2 }, a:totable())
    a:fill(3)
    assert.same({ 3, 3 }, a:totable())
  end)
end)

describe("tensors", function()
  it("calculate with each other and with numbers", function()
    local a = tensor.from_table({ { 1, 2 }, { 3, 4 } }, "f32")
    assert.same({ { 9, 14 }, { 21, 30 } }, (a * 2 + a:matmul(a)):totable())
    assert.same({ { 0, -1 }, { -2, -3 } }, (1 - a):totable())
    assert.same({ { -0.5, -1 }, { -1.5, -2 } }, (-a / 2):totable())
    assert.equal(10, a:sum("all"):item())
    assert.same({ 1.5, 3.5 }, a:mean():totable())
    assert.equal(2, #a)
    assert.equal("bf16", a:to("bf16"):dtype())
    assert.same({ { 1, 3 }, { 2, 4 } }, a:transpose(1, 2):totable())
  end)

  it("print their dtype, shape and numbers", function()
    local a = tensor.from_table({ { 1, 2.5 }, { -3, 4 } }, "f32")
    assert.equal("f32 (2, 2)\n [         1        2.5]\n [        -3          4]", tostring(a))
    assert.matches("^f32 %(%) +3$", tostring(tensor.from_table(3, "f32")))
    local long = tostring(tensor.zeros("bf16", { 100, 100 }))
    assert.matches("^bf16 %(100, 100%)", long)
    assert.matches("%.%.%.", long)
    assert.is_true(#long < 1000)
    a:free()
    assert.equal("tensor (freed)", tostring(a))
  end)

  it("come from seeds", function()
    assert.same(tensor.randn({ 4 }, 1):totable(), tensor.randn({ 4 }, 1):totable())
    assert.not_same(tensor.randn({ 4 }, 1):totable(), tensor.randn({ 4 }, 2):totable())
  end)
end)
