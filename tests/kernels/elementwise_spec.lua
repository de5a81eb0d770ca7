local core = require "onn.core.tensor"
local ops = require "onn.core.ops"
local reference = require "tests.kernels.reference"
local random, gapped, flat, near, floats = reference.random, reference.gapped, reference.flat, reference.near, reference.floats
local huge, nan = math.huge, 0 / 0

local function sigmoid(x) return 1 / (1 + math.exp(-x)) end
local function tanh(x) return x > 20 and 1 or x < -20 and -1 or (math.exp(2 * x) - 1) / (math.exp(2 * x) + 1) end
local function gelu(x) return 0.5 * x * (1 + reference.erf(x / math.sqrt(2))) end
local function gelu_tanh(x) return 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ^ 3))) end
local functions = {
  neg = function(x) return -x end, exp = math.exp, log = math.log, sqrt = math.sqrt, abs = math.abs,
  square = function(x) return x * x end, tanh = tanh, sigmoid = sigmoid, relu = function(x) return math.max(x, 0) end,
  silu = function(x) return x * sigmoid(x) end, gelu = gelu, gelu_tanh = gelu_tanh, quick_gelu = function(x) return x * sigmoid(1.702 * x) end,
  relu2 = function(x) return math.max(x, 0) ^ 2 end, relu6 = function(x) return math.min(math.max(x, 0), 6) end,
  softplus = function(x) return math.log(1 + math.exp(x)) end, hardsigmoid = function(x) return math.min(math.max(x + 3, 0), 6) / 6 end,
  hardswish = function(x) return x * math.min(math.max(x + 3, 0), 6) / 6 end,
}
local function swiglu_oai(g, u)
  g, u = math.min(g, 7), math.min(math.max(u, -7), 7)
  return functions.quick_gelu(g) * (u + 1)
end
local sizes = { 0, 1, 7, 17, 33, 65 }

local function map(f, ...)
  local tables, y = { ... }, {}
  for i = 1, #tables[1] do
    y[i] = tables[3] and f(tables[1][i], tables[2][i], tables[3][i]) or tables[2] and f(tables[1][i], tables[2][i]) or f(tables[1][i])
  end
  return y
end

describe("element by element", function()
  for name, f in pairs(functions) do
    local low = (name == "log" or name == "sqrt") and 0.05 or -6
    it(name .. " and its slope", function()
      for _, dtype in ipairs(floats) do
        for _, n in ipairs(sizes) do
          local x, dy = gapped(dtype, 3, n, n + 1, low, 6), gapped(dtype, 3, n, n + 2)
          local y = ops.unary(x, name)
          near(y, map(f, flat(x)), nil, 1e-6, name)
          local dx = ops.unary_backward(dy:contiguous(), x, y, name)
          local slope = map(function(v, d) return d * (f(v + 1e-6) - f(v - 1e-6)) / 2e-6 end, flat(x), flat(dy))
          -- slopes of exp, tanh, sigmoid and sqrt are made from y, which a bf16 has rounded
          near(dx, slope, dtype == "f32" and 1e-5 or 0.012, dtype == "f32" and 3e-6 or 0.005, name .. " backward")
        end
      end
    end)
  end

  it("walks transposed and broadcast views", function()
    local x = random("f32", { 5, 7, 3 }, 1)
    local turned = x:transpose(1, 3)
    near(ops.unary(turned, "exp"), map(math.exp, flat(turned)))
    local wide = random("bf16", { 1, 9 }, 2):expand(4, 9)
    near(ops.unary(wide, "square"), map(functions.square, flat(wide)))
    near(ops.affine(turned, 2, -1), map(function(v) return 2 * v - 1 end, flat(turned)))
  end)

  it("knows the ends of the numbers", function()
    local x = core.from_table({ huge, -huge, nan, 0, 100, -100 }, "f32")
    local want = {
      neg = { -huge, huge, nan, 0, -100, 100 }, exp = { huge, 0, nan, 1, huge, 0 }, log = { huge, nan, nan, -huge, math.log(100), nan },
      sqrt = { huge, nan, nan, 0, 10, nan }, abs = { huge, huge, nan, 0, 100, 100 }, square = { huge, huge, nan, 0, 1e4, 1e4 },
      tanh = { 1, -1, nan, 0, 1, -1 }, sigmoid = { 1, 0, nan, 0.5, 1, 0 }, relu = { huge, 0, nan, 0, 100, 0 },
      softplus = { huge, 0, nan, math.log(2), 100, math.exp(-100) }, relu6 = { 6, 0, nan, 0, 6, 0 }, relu2 = { huge, 0, nan, 0, 1e4, 0 },
      hardsigmoid = { 1, 0, nan, 0.5, 1, 0 },
    }
    near(ops.unary(core.from_table { -9, -12, -16, -20 }, "softplus"), { 1.2340219e-4, 6.1441935e-6, 1.1253517e-7, 2.0611536e-9 }, 3e-7, 0)
    for name, values in pairs(want) do near(ops.unary(x, name), values, 2e-6, 1e-37, name) end
    for _, name in ipairs { "silu", "gelu", "gelu_tanh" } do
      local y = flat(ops.unary(x, name))
      assert(y[1] == huge and y[3] ~= y[3] and y[4] == 0 and y[5] == 100 and math.abs(y[6]) < 1e-30, name)
    end
  end)

  local binaries = {
    add = function(a, b) return a + b end, sub = function(a, b) return a - b end, mul = function(a, b) return a * b end,
    div = function(a, b) return a / b end, max = math.max, min = math.min,
  }
  it("binary operations broadcast", function()
    for name, f in pairs(binaries) do
      for _, dtype in ipairs(floats) do
        for _, shapes in ipairs { { { 33 }, { 33 } }, { { 3, 17 }, { 17 } }, { { 3, 1 }, { 1, 65 } }, { { 2, 1, 7 }, { 5, 1 } },
          { {}, { 9 } }, { { 0, 4 }, { 4 } }, { {}, {} } } do
          local a, b = random(dtype, shapes[1], 1), random(dtype, shapes[2], 2, 0.5, 2)
          local y = ops.binary(a, b, name)
          near(y, map(f, flat(a:expand(y:shape())), flat(b:expand(y:shape()))), nil, 1e-7, name)
        end
      end
    end
  end)

  it("binary operations may write over an operand", function()
    for _, dtype in ipairs(floats) do
      local a, b = random(dtype, { 40, 33 }, 1), random(dtype, { 33 }, 2)
      local y = ops.binary(a, b, "mul")
      assert.equal(a, ops.binary(a, b, "mul", a))
      assert.equal(reference.bits(y), reference.bits(a))
    end
    assert.has_error(function() ops.binary(random("f32", {}, 1), random("f32", {}, 2), "add", random("f32", { 4 }, 3)) end)
    assert.has_error(function() ops.binary(random("f32", { 3 }, 1), random("f32", { 3 }, 2), "add", random("bf16", { 3 }, 3)) end)
  end)

  it("binary operations carry NaN from either side", function()
    local a, b = core.from_table({ nan, 1, nan, huge, -huge }), core.from_table({ 1, nan, nan, 1, 1 })
    for name in pairs(binaries) do
      local y = flat(ops.binary(a, b, name))
      for i = 1, 3 do assert(y[i] ~= y[i], name) end
    end
    near(ops.binary(a:narrow(1, 4, 2), b:narrow(1, 4, 2), "max"), { huge, 1 })
    near(ops.binary(a:narrow(1, 4, 2), b:narrow(1, 4, 2), "min"), { 1, -huge })
  end)

  it("binary operations of integers", function()
    for _, dtype in ipairs { "i32", "i64" } do
      local a, b = core.from_table({ 7, -7, 5, 2 ^ 31 - 1 }, dtype), core.from_table({ 2, 2, 0, -1 }, dtype)
      assert.same({ 9, -5, 5, 2 ^ 31 - 2 }, ops.binary(a, b, "add"):totable())
      assert.same({ 3, -3, 0, -(2 ^ 31 - 1) }, ops.binary(a, b, "div"):totable())
      assert.same({ 7, 2, 5, 2 ^ 31 - 1 }, ops.binary(a, b, "max"):totable())
      assert.same({ 2, -7, 0, -1 }, ops.binary(a, b, "min"):totable())
    end
  end)

  it("gates and their slopes", function()
    local gates = { silu = functions.silu, gelu = gelu, gelu_tanh = gelu_tanh, sigmoid = sigmoid, relu = functions.relu, tanh = tanh,
      quick_gelu = functions.quick_gelu, relu2 = functions.relu2 }
    for name, f in pairs(gates) do
      for _, dtype in ipairs(floats) do
        for _, n in ipairs(sizes) do
          local g, u, dy = gapped(dtype, 3, n, 1, -5, 5), gapped(dtype, 3, n, 2), gapped(dtype, 3, n, 3)
          near(ops.gate(g, u, name), map(function(a, b) return f(a) * b end, flat(g), flat(u)), nil, 1e-6, name)
          local dg, du = ops.gate_backward(dy, g, u, name)
          near(dg, map(function(a, b, d) return d * b * (f(a + 1e-6) - f(a - 1e-6)) / 2e-6 end, flat(g), flat(u), flat(dy)), nil, 2e-6,
            name)
          near(du, map(function(a, d) return d * f(a) end, flat(g), flat(dy)), nil, 2e-6, name)
        end
      end
    end
  end)

  it("clamps both sides of gpt-oss's gate", function()
    for _, dtype in ipairs(floats) do
      for _, n in ipairs(sizes) do
        local g, u, dy = gapped(dtype, 3, n, 1, -10, 10), gapped(dtype, 3, n, 2, -10, 10), gapped(dtype, 3, n, 3)
        near(ops.gate(g, u, "swiglu_oai"), map(swiglu_oai, flat(g), flat(u)), nil, 1e-6)
        local dg, du = ops.gate_backward(dy, g, u, "swiglu_oai")
        near(dg, map(function(a, b, d) return d * (swiglu_oai(a + 1e-6, b) - swiglu_oai(a - 1e-6, b)) / 2e-6 end, flat(g), flat(u), flat(dy)), nil,
          1e-5)
        near(du, map(function(a, b, d) return d * (swiglu_oai(a, b + 1e-6) - swiglu_oai(a, b - 1e-6)) / 2e-6 end, flat(g), flat(u), flat(dy)), nil,
          1e-5)
      end
    end
  end)

  it("converts every dtype to every other", function()
    local values = { 0, 1, 2, 5, 100, 127 }
    local all = { "f32", "bf16", "f16", "i8", "u8", "i32", "i64" }
    for _, from in ipairs(all) do
      for _, to in ipairs(all) do assert.same(values, core.from_table(values, from):to(to):totable(), from .. " to " .. to) end
    end
    assert.same({ false, true, true }, core.from_table({ 0, -1, 0.5 }):to("bool"):totable())
  end)

  it("rounds to nearest even, saturates, keeps NaN and infinity", function()
    local x = core.from_table { 1 + 2 ^ -8, 1 + 3 * 2 ^ -8, 1 + 2 ^ -8 + 2 ^ -20, huge, -huge, nan, 3.4e38, -0.0 }
    near(x:to("bf16"):to("f32"), { 1, 1 + 2 ^ -6, 1 + 2 ^ -7, huge, -huge, nan, huge, 0 }, 0, 0)
    local h = core.from_table { 1 + 2 ^ -11, 1 + 3 * 2 ^ -11, 65519, 65520, -70000, nan, 2 ^ -24, 2 ^ -25, 1.5 * 2 ^ -24,
      2 ^ -14 - 2 ^ -25 }
    near(h:to("f16"):to("f32"), { 1, 1 + 2 ^ -9, 65504, huge, -huge, nan, 2 ^ -24, 0, 2 ^ -23, 2 ^ -14 }, 0, 0)
    local big = core.from_table { 1e10, -1e10, nan, 300, -300, 1.9 }
    assert.same({ 2 ^ 31 - 1, -2 ^ 31, 0, 300, -300, 1 }, big:to("i32"):totable())
    assert.same({ 127, -128, 0, 127, -128, 1 }, big:to("i8"):totable())
    assert.same({ 255, 0, 0, 255, 0, 1 }, big:to("u8"):totable())
  end)

  it("every f16 comes back from f32", function()
    local n = 65536
    local words = {}
    for i = 0, n - 1 do words[i + 1] = string.char(i % 256, math.floor(i / 256)) end
    local h = core.from_data(table.concat(words), "f16", { n })
    local back = h:to("f32"):to("f16"):data()
    local whole = h:to("f32"):narrow(1, 1, 0x7c01):totable()
    for i = 1, n do
      local bits = i - 1
      local is_nan = bits % 0x8000 > 0x7c00
      if not is_nan then assert(back:sub(2 * i - 1, 2 * i) == words[i], bits) end
    end
    for i = 0, 0x7bff do
      local e, m = math.floor(i / 1024), i % 1024
      assert(whole[i + 1] == (e == 0 and m * 2 ^ -24 or (1024 + m) * 2 ^ (e - 25)), i)
    end
  end)

  it("floats side by side convert to the bits that they give one by one", function()
    local function every(dtype, infinity)
      local words = {}
      for _, sign in ipairs { 0, 128 } do
        for i = 0, infinity do words[#words + 1] = string.char(i % 256, math.floor(i / 256) + sign) end
      end
      return core.from_data(table.concat(words), dtype, { #words })
    end
    local sources = { every("f16", 0x7c00), every("bf16", 0x7f80) }
    sources[3] = ops.binary(every("bf16", 0x7f7f):to "f32", random("f32", { 0x7f80 * 2 }, 1, 0.5, 1), "mul")
    for _, x in ipairs(sources) do
      local apart = core.zeros(x:dtype(), { x:numel(), 2 }):select(2, 1)
      apart:copy(x)
      for _, to in ipairs { "f32", "bf16", "f16" } do
        assert.equal(reference.bits(apart:to(to)), reference.bits(x:to(to)), x:dtype() .. " to " .. to)
      end
    end
  end)

  it("copies between strided views", function()
    local x = random("f32", { 6, 5, 4 }, 1)
    local y = core.zeros("bf16", { 4, 5, 9 }):narrow(3, 2, 6)
    y:copy(x:transpose(1, 3))
    near(y, flat(x:transpose(1, 3)))
    near(core.new("i32", { 3, 3 }):fill(7):transpose(1, 2), 7)
    near(core.new("f32", { 0, 3 }):fill(7), {})
  end)

  it("gives the same bits for any threads", function()
    local x, dy = random("f32", { 300, 257 }, 1, -4, 4), random("f32", { 300, 257 }, 2)
    reference.any_threads(function()
      local y = ops.unary(x, "gelu")
      local dg, du = ops.gate_backward(dy, x, x, "silu")
      return y, ops.unary_backward(dy, x, y, "gelu"), ops.binary(x, dy, "div"), ops.affine(x, 3, 1), x:to("bf16"),
        x:transpose(1, 2):contiguous(), ops.gate(x, dy, "silu"), dg, du
    end)
  end)

  it("refuses dtypes that it does not know", function()
    for _, dtype in ipairs { "i8", "u8", "f16", "i32", "bool" } do
      local x = core.zeros(dtype, { 4 })
      assert.error_matches(function() ops.unary(x, "exp") end, "expected f32 or bf16, got " .. dtype)
      assert.error_matches(function() ops.affine(x, 1, 0) end, "expected f32 or bf16")
      assert.error_matches(function() ops.unary_backward(x, x, x, "exp") end, "expected f32 or bf16")
      if dtype ~= "i32" then assert.has_error(function() ops.binary(x, x, "add") end) end
    end
    assert.error_matches(function() ops.binary(random("f32", { 3 }, 1), random("bf16", { 3 }, 1), "add") end, "do not mix")
    assert.error_matches(function() ops.binary(random("f32", { 3 }, 1), random("f32", { 4 }, 1), "add") end, "do not broadcast")
  end)

  reference.every_instruction_set(it, pending)
end)
