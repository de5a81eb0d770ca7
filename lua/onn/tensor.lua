-- onn.tensor: constructors, arithmetic operators and readable printing on top of the core's handles.
--   local t = tensor.from_table({{1, 2}, {3, 4}}, "f32"); print(t * 2 + t:matmul(t))
local core = require "onn.core.tensor"
local raw = require "onn.core.ops"
local ops = require "onn.ops"
local tape = require "onn.autograd.tape"

local tensor = {}
local class = core.class

function tensor.new(dtype, ...) return core.new(dtype, ...) end
function tensor.zeros(dtype, ...) return core.zeros(dtype, ...) end
function tensor.ones(dtype, ...) return core.new(dtype, ...):fill(1) end
function tensor.from_table(values, dtype) return core.from_table(values, dtype) end
tensor.from_data, tensor.is_tensor = core.from_data, core.is_tensor

-- Normal numbers (mean 0, deviation 1) from a seed; f32 of the given shape.
function tensor.randn(shape, seed, site)
  return raw.normal(core.new("f32", shape), seed or 0, site or "tensor.randn", 0, 1)
end

-- Uniform numbers in [low, high) from a seed; f32 of the given shape.
function tensor.rand(shape, seed, low, high, site)
  return raw.uniform(core.new("f32", shape), seed or 0, site or "tensor.rand", 0, low or 0, high or 1)
end

-- One tensor of a safetensors file or model directory; nil, message, code when it is not there.
function tensor.load(path, name, dtype)
  local store, message, code = require("onn.store").open(path)
  if not store then return nil, message, code end
  local t
  t, message, code = store:read(name, dtype)
  store:close()
  return t, message, code
end

local function operand(like, value)
  if type(value) ~= "number" then return value end
  return core.new(like:dtype(), {}):fill(value)
end

local function operator(name)
  return function(a, b)
    if type(a) == "number" then a = operand(b, a) else b = operand(a, b) end
    return ops[name](a, b)
  end
end
class.__add, class.__sub, class.__mul, class.__div = operator "add", operator "sub", operator "mul", operator "div"
class.__unm = function(a) return ops.neg(a) end
class.__len = function(a) return a:size(1) end

for _, name in ipairs { "exp", "log", "sqrt", "abs", "square", "tanh", "sigmoid", "relu", "silu", "gelu", "gelu_tanh",
  "relu6", "hardsigmoid", "hardswish", "softmax", "matmul", "affine", "add", "sub", "mul", "div" } do
  class[name] = ops[name]
end
-- Views, copies and conversions pass gradients on.
for _, name in ipairs { "to", "view", "transpose", "narrow", "select", "expand", "contiguous", "clone" } do class[name] = ops[name] end

-- What changes a tensor in place would make its gradient wrong, so it is refused where one is wanted.
for _, name in ipairs { "copy", "fill" } do
  local raw_method = class[name]
  class[name] = function(t, ...)
    if tape.tracked(t) then error(name .. ": this tensor's gradient is wanted, so it cannot be changed in place", 2) end
    return raw_method(t, ...)
  end
end

-- Reductions over the last dimension, or over all elements with "all".
function class.sum(t, all) return ops.sum(all == "all" and ops.view(t:contiguous(), { t:numel() }) or t) end
function class.mean(t, all) return ops.mean(all == "all" and ops.view(t:contiguous(), { t:numel() }) or t) end
function class.max(t) return raw.reduce(t, "max") end
function class.argmax(t) return raw.reduce(t, "argmax") end

local function cell(value) return type(value) == "number" and string.format("%10.4g", value) or tostring(value) end

-- At most 6 rows and 8 columns are shown; "..." says where more are.
local function show(values, depth, lines)
  if type(values) ~= "table" then return cell(values) end
  if type(values[1]) ~= "table" then
    local shown = {}
    for i = 1, math.min(#values, 8) do shown[i] = cell(values[i]) end
    if #values > 8 then shown[#shown + 1] = "..." end
    lines[#lines + 1] = string.rep(" ", depth) .. "[" .. table.concat(shown, " ") .. "]"
    return
  end
  for i = 1, math.min(#values, 6) do show(values[i], depth + 1, lines) end
  if #values > 6 then lines[#lines + 1] = string.rep(" ", depth + 1) .. "..." end
end

class.__tostring = function(t)
  if t:is_free() then return "tensor (freed)" end
  local lines = {}
  local small, shape = t, t:shape()
  for d = 1, #shape do small = small:narrow(d, 1, math.min(shape[d], d == #shape and 9 or 7)) end
  local single = show(small:totable(), 0, lines)
  return t:describe() .. (single and " " .. single or "\n" .. table.concat(lines, "\n"))
end

return tensor
