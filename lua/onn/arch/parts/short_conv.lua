-- The gated short convolution (LFM2): one product gives b, c and x; a causal convolution of b x in each channel is weighed by c. c.conv: its
-- size; c.conv_bias: of products and convolution.
local first = require "onn.arch.parts.first"
local linear = require "onn.nn.linear"
local ops = require "onn.ops"
local past = require "onn.arch.parts.past"

local short_conv = {}

function short_conv.tensors(c, _, add)
  local name = c.names.conv .. "."
  add.linear("in_proj", name .. "in_proj", 3 * c.width, c.width, c.conv_bias)
  add.linear("out_proj", name .. "out_proj", c.width, c.width, c.conv_bias)
  add.vector("conv", name .. "conv.weight", { c.width, 1, c.conv }, { first = first.convolution })
  if c.conv_bias then add.vector("conv_bias", name .. "conv.bias", { c.width }) end
end

-- x (tokens, width) -> (tokens, width) f32
function short_conv.forward(c, stage, x, carry, ctx)
  local w, starts, state = stage.weights, past(stage, carry, ctx)
  local b, k, h = ops.split(linear(w.in_proj, x, ctx, "f32"), { c.width, c.width, c.width })
  local y = ops.causal_conv(ops.mul(b, h), w.conv, w.conv_bias, starts, state.conv)
  return linear(w.out_proj, ops.to(ops.mul(k, y), ctx.dtype), ctx, "f32")
end

function short_conv.state(c) return { conv = { c.conv - 1, c.width } } end

return short_conv
