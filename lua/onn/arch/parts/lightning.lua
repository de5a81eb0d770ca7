-- Lightning attention (arXiv 2501.08313): of each head, the sum of keys times values of the tokens before, decaying by a constant, read by a
-- query; a norm over all heads, weighed by a sigmoid of a product of x. Its own arithmetic is f32. It is a selective scan whose steps are 1.
local linear = require "onn.nn.linear"
local ops = require "onn.ops"
local past = require "onn.arch.parts.past"
local tensors = require "onn.core.tensor"

local lightning = {}

function lightning.tensors(c, _, add)
  local n, width = c.names, c.heads * c.head_size
  add.linear("qkv", n.lightning_qkv, 3 * width, c.width)
  add.linear("output_gate", n.lightning_gate, width, c.width)
  add.linear("out", n.lightning_out, c.width, width)
  add.vector("lightning_norm", n.lightning_norm .. ".weight", { width })
end

-- Logarithms of the heads' decays in this layer: powers of 2^(-8 / heads), less in later layers.
local function decays(c, layer)
  local list = {}
  for h = 1, c.heads do list[h] = math.log(2 ^ (-8 * h / c.heads) * (1 - layer / (c.layers - 1 + 1e-5) + 1e-5)) end
  return tensors.from_table(list)
end

-- x (tokens, width) -> (tokens, width) f32
function lightning.forward(c, stage, x, carry, ctx)
  local w, tokens, size, starts, state = stage.weights, x:size(1), c.head_size, past(stage, carry, ctx)
  local qkv = ops.view(ops.silu(linear(w.qkv, x, ctx, "f32")), { tokens, c.heads, 3 * size })
  local q, k, v = ops.split(qkv, { size, size, size })
  v = ops.view(ops.contiguous(v), { tokens, c.heads * size })
  local y = ops.scan(v, tensors.zeros("f32", { tokens, c.heads }), ops.contiguous(k), ops.contiguous(q), decays(c, stage.index), nil, nil,
    { starts = starts, low = 1, high = 1, state = state.scan })
  y = ops.mul(ops.rms_norm(y, w.lightning_norm, 1e-6), ops.sigmoid(linear(w.output_gate, x, ctx, "f32")))
  return linear(w.out, ops.to(y, ctx.dtype), ctx, "f32")
end

function lightning.state(c) return { scan = { c.heads * c.head_size, c.head_size } } end

return lightning
