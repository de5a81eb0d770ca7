-- Mamba 2's mixer (arXiv 2405.21060): heads of channels that share one decay, b and c in groups. Its own arithmetic is f32 whatever the
-- products' dtype. Sizes and switches in c.ssm (onn.arch.selective): inner, heads, groups, states, conv, bias, out_bias, conv_bias, low and
-- high (limits of steps), multipliers {gate, x, b, c, dt} of the first product's parts; gate_norm: a norm of each group, "after" the gate or
-- "before" it, or false.
local first = require "onn.arch.parts.first"
local linear = require "onn.nn.linear"
local ops = require "onn.ops"
local past = require "onn.arch.parts.past"

local mamba2 = {}

local function channels(s) return s.inner + 2 * s.groups * s.states end

function mamba2.tensors(c, _, add)
  local s, name = c.ssm, c.names.mamba .. "."
  add.linear("in_proj", name .. "in_proj", s.inner + channels(s) + s.heads, c.width, s.bias)
  add.linear("out_proj", name .. "out_proj", c.width, s.inner, s.out_bias)
  add.vector("conv", name .. "conv1d.weight", { channels(s), 1, s.conv }, { first = first.convolution })
  if s.conv_bias then add.vector("conv_bias", name .. "conv1d.bias", { channels(s) }) end
  add.vector("dt_bias", name .. "dt_bias", { s.heads }, { first = first.step })
  add.vector("a_log", name .. "A_log", { s.heads }, { first = first.decays })
  add.vector("d", name .. "D", { s.heads })
  if s.gate_norm then add.vector("gate_norm", name .. "norm.weight", { s.inner }) end
end

-- y weighed by its gate, and normed, in `dtype`.
local function gated(c, w, y, gate, dtype)
  local s, tokens = c.ssm, y:size(1)
  local function norm(x, as)
    x = ops.view(x, { tokens, s.groups, s.inner / s.groups })
    return ops.view(ops.rms_norm(x, w.gate_norm, c.eps, as), { tokens, s.inner })
  end
  if s.gate_norm == "after" then return norm(ops.gate(gate, y, "silu"), dtype) end
  return ops.to(ops.gate(gate, s.gate_norm and norm(y, "f32") or y, "silu"), dtype)
end

-- x (tokens, width) -> (tokens, width) f32
function mamba2.forward(c, stage, x, carry, ctx)
  local s, w, tokens, starts, state = c.ssm, stage.weights, x:size(1), past(stage, carry, ctx)
  local side = s.groups * s.states
  local projected = linear(w.in_proj, x, ctx, "f32")
  local gate, h, dt
  if s.multipliers then
    local parts = { ops.split(projected, { s.inner, s.inner, side, side, s.heads }) }
    for k, by in ipairs(s.multipliers) do parts[k] = by == 1 and parts[k] or ops.affine(parts[k], by, 0) end
    gate, h, dt = parts[1], ops.cat(ops.cat(parts[2], parts[3], 2), parts[4], 2), parts[5]
  else
    gate, h, dt = ops.split(projected, { s.inner, channels(s), s.heads })
  end
  h = ops.silu(ops.causal_conv(h, w.conv, w.conv_bias, starts, state.conv))
  local inner, b, k = ops.split(h, { s.inner, side, side })
  local function groups(t) return ops.view(ops.contiguous(t), { tokens, s.groups, s.states }) end
  local y = ops.scan(inner, dt, groups(b), groups(k), w.a_log, w.dt_bias, w.d, { starts = starts, low = s.low, high = s.high, state = state.scan })
  return linear(w.out_proj, gated(c, w, y, gate, ctx.dtype), ctx, "f32")
end

function mamba2.state(c) return { conv = { c.ssm.conv - 1, channels(c.ssm) }, scan = { c.ssm.inner, c.ssm.states } } end

return mamba2
