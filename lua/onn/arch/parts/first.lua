-- First values, in training from nothing, of what is neither a product nor a norm (arXiv 2312.00752, 3.6 and appendix). Each is a
-- function(tensor {name, shape}, seed) -> f32 tensor.
local core = require "onn.core.ops"
local tensors = require "onn.core.tensor"

local first = {}

-- The logarithms of decays 1, 2, ...: in each row, or one after another.
function first.decays(t)
  local columns, list, count = t.shape[2], {}, 1
  for _, size in ipairs(t.shape) do count = count * size end
  for i = 1, count do list[i] = math.log(columns and (i - 1) % columns + 1 or i) end
  return tensors.new("f32", t.shape):copy(tensors.from_table(list):view(t.shape))
end

-- Biases whose softplus is a step of 0.01.
function first.step(t) return tensors.new("f32", t.shape):fill(math.log(math.exp(0.01) - 1)) end

-- A convolution's weight, uniform by its size.
function first.convolution(t, seed)
  local bound = 1 / math.sqrt(t.shape[#t.shape])
  return core.uniform(tensors.new("f32", t.shape), seed, "init/" .. t.name, 0, -bound, bound)
end

return first
