-- The mixer of gated delta nets (arXiv 2412.06464): a short convolution of queries, keys and values, the gated delta rule, a norm of each
-- head weighed by a gate. Its own arithmetic is f32 whatever the products' dtype. c.delta: key_heads, heads (of values), key_size, size (of
-- values), conv, beta_scale, eps, stored: how the checkpoint has its input products:
--   "grouped"   in_proj_qkvz and in_proj_ba, each [key head, its parts]
--   "parts"     in_proj_qkv, in_proj_z, in_proj_b, in_proj_a
--   "one"       in_proj, rows [q, k, v, z, b, a]
--   "separate"  q_proj, k_proj, v_proj, g_proj, b_proj, a_proj, and a convolution's weight of three tensors, of conv_rows rows
--   "low_rank"  the same with two products each, f_a_proj and f_b_proj, g_a_proj and g_b_proj, for decays and gate (Kimi, arXiv 2510.26692)
-- each_decay: every element of a key has a decay of its own; gate: "silu" or "sigmoid".
local first = require "onn.arch.parts.first"
local linear = require "onn.nn.linear"
local ops = require "onn.ops"
local past = require "onn.arch.parts.past"

local delta = {}

local function widths(d) return d.key_heads * d.key_size, d.heads * d.size end

-- Products by role, {name, width} in the order of the checkpoint.
local products = {
  grouped = function(k, v, heads) return { { "qkvz", "in_proj_qkvz", 2 * k + 2 * v }, { "ba", "in_proj_ba", 2 * heads } } end,
  parts = function(k, v, heads)
    return { { "qkv", "in_proj_qkv", 2 * k + v }, { "z", "in_proj_z", v }, { "b", "in_proj_b", heads }, { "a", "in_proj_a", heads } }
  end,
  one = function(k, v, heads) return { { "all", "in_proj", 2 * k + 2 * v + 2 * heads } } end,
  separate = function(k, v, heads)
    return { { "q", "q_proj", k }, { "k", "k_proj", k }, { "v", "v_proj", v }, { "z", "g_proj", v }, { "b", "b_proj", heads },
      { "a", "a_proj", heads } }
  end,
  low_rank = function(k, v, heads, size)
    return { { "q", "q_proj", k }, { "k", "k_proj", k }, { "v", "v_proj", v }, { "f_a", "f_a_proj", size }, { "f_b", "f_b_proj", k, size },
      { "b", "b_proj", heads }, { "g_a", "g_a_proj", size }, { "g_b", "g_b_proj", v, size } }
  end,
}

function delta.tensors(c, layer, add)
  local d, name = c.delta, c.names.delta .. "."
  local k, v = widths(d)
  for _, p in ipairs(products[d.stored](k, v, d.heads, d.key_size)) do
    add.linear(p[1], name .. p[2], p[3], p[4] or c.width)
  end
  add.linear("out", name .. c.names.delta_out, c.width, v)
  if d.conv_rows then
    for i, part in ipairs { "q", "k", "v" } do
      add.vector(part .. "_conv", ("%s%s_conv1d.weight"):format(name, part), { d.conv_rows[layer][i], 1, d.conv }, { first = first.convolution })
    end
  else
    add.vector("conv", name .. "conv1d.weight", { 2 * k + v, 1, d.conv }, { first = first.convolution })
  end
  add.vector("dt_bias", name .. "dt_bias", { d.each_decay and k or d.heads }, { first = first.step })
  add.vector("a_log", name .. "A_log", d.each_decay and { 1, 1, d.heads, 1 } or { d.heads }, { first = first.decays })
  add.vector("delta_norm", name .. c.names.delta_norm .. ".weight", { d.size })
end

-- q, k, v in one f32 (tokens, 2 keys + values), the gate (tokens, values), b and a (tokens, heads).
local project = {}

function project.grouped(d, w, x, ctx)
  local tokens, k, v = x:size(1), widths(d)
  local per = d.heads / d.key_heads
  local q, key, value, z = ops.split(ops.view(linear(w.qkvz, x, ctx, "f32"), { tokens, d.key_heads, 2 * d.key_size + 2 * per * d.size }),
    { d.key_size, d.key_size, per * d.size, per * d.size })
  local b, a = ops.split(ops.view(linear(w.ba, x, ctx, "f32"), { tokens, d.key_heads, 2 * per }), { per, per })
  local function flat(t, width) return ops.view(ops.contiguous(t), { tokens, width }) end
  return ops.cat(ops.cat(flat(q, k), flat(key, k), 2), flat(value, v), 2), flat(z, v), flat(b, d.heads), flat(a, d.heads)
end

function project.parts(_, w, x, ctx)
  return linear(w.qkv, x, ctx, "f32"), linear(w.z, x, ctx, "f32"), linear(w.b, x, ctx, "f32"), linear(w.a, x, ctx, "f32")
end

function project.one(d, w, x, ctx)
  local k, v = widths(d)
  return ops.split(linear(w.all, x, ctx, "f32"), { 2 * k + v, v, d.heads, d.heads })
end

function project.separate(_, w, x, ctx)
  local qkv = ops.cat(ops.cat(linear(w.q, x, ctx, "f32"), linear(w.k, x, ctx, "f32"), 2), linear(w.v, x, ctx, "f32"), 2)
  return qkv, linear(w.z, x, ctx, "f32"), linear(w.b, x, ctx, "f32"), linear(w.a, x, ctx, "f32")
end

function project.low_rank(_, w, x, ctx)
  local qkv = ops.cat(ops.cat(linear(w.q, x, ctx, "f32"), linear(w.k, x, ctx, "f32"), 2), linear(w.v, x, ctx, "f32"), 2)
  return qkv, linear(w.g_b, linear(w.g_a, x, ctx), ctx, "f32"), linear(w.b, x, ctx, "f32"), linear(w.f_b, linear(w.f_a, x, ctx), ctx, "f32")
end

-- Logarithms of the decays, (tokens, heads, 1 or key_size), from a.
local function decays(d, w, a)
  local tokens, each = a:size(1), d.each_decay and d.key_size or 1
  local step = ops.view(ops.softplus(ops.add(a, ops.view(w.dt_bias, { 1, d.heads * each }))), { tokens, d.heads, each })
  return ops.affine(ops.mul(step, ops.view(ops.exp(w.a_log), { 1, d.heads, 1 })), -1, 0)
end

-- x (tokens, width) -> (tokens, width) f32
function delta.forward(c, stage, x, carry, ctx)
  local d, w, tokens, starts, state = c.delta, stage.weights, x:size(1), past(stage, carry, ctx)
  local keys, values = widths(d)
  local qkv, z, b, a = project[d.stored](d, w, x, ctx)
  local conv = w.conv or ops.cat(ops.cat(w.q_conv, w.k_conv, 1), w.v_conv, 1)
  local q, k, v = ops.split(ops.silu(ops.causal_conv(qkv, conv, nil, starts, state.conv)), { keys, keys, values })
  -- each head's vector to the length `scale`
  local function unit(t, scale)
    t = ops.view(ops.contiguous(t), { tokens, d.key_heads, d.key_size })
    return ops.affine(ops.rms_norm(t, nil, 1e-6 / d.key_size), scale / math.sqrt(d.key_size), 0)
  end
  local beta = ops.sigmoid(b)
  if d.beta_scale ~= 1 then beta = ops.affine(beta, d.beta_scale, 0) end
  local y = ops.delta_rule(unit(q, 1 / math.sqrt(d.key_size)), unit(k, 1), v, decays(d, w, a), beta, starts, state.rule)
  y = ops.view(ops.rms_norm(ops.view(y, { tokens, d.heads, d.size }), w.delta_norm, d.eps), { tokens, values })
  y = d.gate == "sigmoid" and ops.mul(y, ops.sigmoid(z)) or ops.gate(z, y, "silu")
  return linear(w.out, ops.to(y, ctx.dtype), ctx, "f32")
end

function delta.state(c)
  local d = c.delta
  local k, v = widths(d)
  return { conv = { d.conv - 1, 2 * k + v }, rule = { v, d.key_size } }
end

return delta
