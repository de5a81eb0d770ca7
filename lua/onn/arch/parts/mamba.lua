-- Mamba's mixer (arXiv 2312.00752): every channel has its own step and decays. Its own arithmetic is f32 whatever the products' dtype.
-- Sizes and switches in c.ssm (onn.arch.selective): inner, states, conv, rank, bias, conv_bias, inner_norm ("plain": dt, b and c are
-- normed, "weighted": with weights), norm_eps.
local first = require "onn.arch.parts.first"
local linear = require "onn.nn.linear"
local ops = require "onn.ops"
local past = require "onn.arch.parts.past"

local mamba = {}

function mamba.tensors(c, _, add)
  local s, name = c.ssm, c.names.mamba .. "."
  add.linear("in_proj", name .. "in_proj", 2 * s.inner, c.width, s.bias)
  add.linear("x_proj", name .. "x_proj", s.rank + 2 * s.states, s.inner)
  add.linear("out_proj", name .. "out_proj", c.width, s.inner, s.bias)
  add.vector("conv", name .. "conv1d.weight", { s.inner, 1, s.conv }, { first = first.convolution })
  if s.conv_bias then add.vector("conv_bias", name .. "conv1d.bias", { s.inner }) end
  add.matrix("dt", name .. "dt_proj.weight", { s.inner, s.rank })
  add.vector("dt_bias", name .. "dt_proj.bias", { s.inner }, { first = first.step })
  add.vector("a_log", name .. "A_log", { s.inner, s.states }, { first = first.decays })
  add.vector("d", name .. "D", { s.inner })
  if s.inner_norm == "weighted" then
    add.vector("dt_norm", name .. "dt_layernorm.weight", { s.rank })
    add.vector("b_norm", name .. "b_layernorm.weight", { s.states })
    add.vector("c_norm", name .. "c_layernorm.weight", { s.states })
  end
end

local function of_group(x, states) return ops.view(ops.contiguous(x), { x:size(1), 1, states }) end

-- x (tokens, width) -> (tokens, width) f32
function mamba.forward(c, stage, x, carry, ctx)
  local s, w, starts, state = c.ssm, stage.weights, past(stage, carry, ctx)
  local h, gate = ops.split(linear(w.in_proj, x, ctx, "f32"), { s.inner, s.inner })
  h = ops.silu(ops.causal_conv(h, w.conv, w.conv_bias, starts, state.conv))
  local dt, b, k = ops.split(linear(w.x_proj, ops.to(h, ctx.dtype), ctx, "f32"), { s.rank, s.states, s.states })
  if s.inner_norm then
    dt, b, k = ops.rms_norm(dt, w.dt_norm, s.norm_eps), ops.rms_norm(b, w.b_norm, s.norm_eps), ops.rms_norm(k, w.c_norm, s.norm_eps)
  end
  dt = linear({ weight = w.dt, bias = w.dt_bias }, ops.to(dt, ctx.dtype), ctx, "f32")
  local y = ops.scan(h, dt, of_group(b, s.states), of_group(k, s.states), w.a_log, nil, w.d, { starts = starts, state = state.scan })
  return linear(w.out_proj, ops.to(ops.gate(gate, y, "silu"), ctx.dtype), ctx, "f32")
end

function mamba.state(c) return { conv = { c.ssm.conv - 1, c.ssm.inner }, scan = { c.ssm.inner, c.ssm.states } } end

return mamba
