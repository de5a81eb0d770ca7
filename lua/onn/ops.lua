-- Differentiable operations: each runs its rule, recorded on the current tape if there is one.
-- Shapes: (rows, width) unless said; see autograd/rules.lua for each rule and kernels/ops.def for its kernel.
local rules = require "onn.autograd.rules"
local tape = require "onn.autograd.tape"

-- How many leading arguments are tensors; the others are attributes.
local arity = {
  add = 2, sub = 2, mul = 2, div = 2, affine = 1, to = 1, view = 1, transpose = 1, split = 1, sum = 1, mean = 1, softmax = 1,
  matmul = 2, embedding = 1, rms_norm = 2, layer_norm = 3, rope = 1, attention = 3, gate = 2, linear = 6, dropout = 1,
  head_loss = 3, head_end = 1, cross_entropy = 1, class_loss = 1, conv = 3, pool = 1, adaptive_pool = 1, batch_norm = 3, cat = 2,
  causal_conv = 3, scan = 7, delta_rule = 5, recurrent = 6,
}

local ops = {}
for name, rule in pairs(rules) do
  local n = arity[name] or 1
  if n == 1 then
    ops[name] = function(a, ...) return tape.apply(rule, { n = 1, a }, ...) end
  elseif n == 2 then
    ops[name] = function(a, b, ...) return tape.apply(rule, { n = 2, a, b }, ...) end
  elseif n == 3 then
    ops[name] = function(a, b, c, ...) return tape.apply(rule, { n = 3, a, b, c }, ...) end
  elseif n == 5 then
    ops[name] = function(a, b, c, d, e, ...) return tape.apply(rule, { n = 5, a, b, c, d, e }, ...) end
  elseif n == 6 then
    ops[name] = function(a, b, c, d, e, f, ...) return tape.apply(rule, { n = 6, a, b, c, d, e, f }, ...) end
  else
    ops[name] = function(a, b, c, d, e, f, g, ...) return tape.apply(rule, { n = 7, a, b, c, d, e, f, g }, ...) end
  end
end

-- concat_rows { a, b, ... }
function ops.concat_rows(list)
  local inputs = { n = #list }
  for k, t in ipairs(list) do inputs[k] = t end
  return tape.apply(rules.concat_rows, inputs)
end

return ops
