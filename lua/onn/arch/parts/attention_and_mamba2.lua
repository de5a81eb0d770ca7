-- Attention and mamba 2's mixer side by side on one input (Falcon-H1): the sum of what both give, each with factors of its input and of its
-- result: c.beside {attention_in, attention_out, mamba_in, mamba_out}.
local attention = require "onn.arch.parts.attention"
local mamba2 = require "onn.arch.parts.mamba2"
local ops = require "onn.ops"

local both = { cache = attention.cache, state = mamba2.state }

function both.tensors(c, layer, add)
  attention.tensors(c, layer, add)
  mamba2.tensors(c, layer, add)
end

local function scaled(x, by) return by == 1 and x or ops.affine(x, by, 0) end

-- x (tokens, width) -> (tokens, width) f32
function both.forward(c, stage, x, carry, ctx)
  local by = c.beside
  local a = attention.forward(c, stage, scaled(x, by.attention_in), carry, ctx)
  local b = mamba2.forward(c, stage, scaled(x, by.mamba_in), carry, ctx)
  return ops.add(scaled(a, by.attention_out), scaled(b, by.mamba_out))
end

return both
