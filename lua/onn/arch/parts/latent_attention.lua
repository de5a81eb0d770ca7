-- Latent attention (DeepSeek, arXiv 2405.04434): keys and values of all heads from one narrow vector, and one rotated key for all heads.
-- Switches in c: heads, q_rank (nil: queries directly), kv_rank, nope_size, rope_size, value_size, latent_eps (of its own norms), rotated.
local linear = require "onn.nn.linear"
local norm = require "onn.arch.parts.norm"
local ops = require "onn.ops"

local latent = {}

function latent.tensors(c, _, add)
  local n, bias = c.names, c.bias
  local size = c.nope_size + c.rope_size
  if c.q_rank then
    add.linear("q_a", n.q_a, c.q_rank, c.width, bias.a)
    norm.tensors(c, add, "q_a_norm", n.q_a_norm, c.q_rank)
    add.linear("q_b", n.q_b, c.heads * size, c.q_rank)
  else
    add.linear("q", n.q, c.heads * size, c.width)
  end
  add.linear("kv_a", n.kv_a, c.kv_rank + c.rope_size, c.width, bias.a)
  norm.tensors(c, add, "kv_a_norm", n.kv_a_norm, c.kv_rank)
  add.linear("kv_b", n.kv_b, c.heads * (c.nope_size + c.value_size), c.kv_rank)
  add.linear("o", n.o, c.width, c.heads * c.value_size, bias.o)
end

function latent.forward(c, stage, x, carry, ctx)
  local w, tokens, size = stage.weights, x:size(1), c.nope_size + c.rope_size
  local q
  if w.q_a then
    q = linear(w.q_b, norm.apply(c, stage, "q_a_norm", linear(w.q_a, x, ctx, "f32"), ctx.dtype, c.latent_eps), ctx, "f32")
  else
    q = linear(w.q, x, ctx, "f32")
  end
  local q_nope, q_rope = ops.split(ops.view(q, { tokens, c.heads, size }), { c.nope_size, c.rope_size })
  local narrow, k_rope = ops.split(linear(w.kv_a, x, ctx, "f32"), { c.kv_rank, c.rope_size })
  local kv = linear(w.kv_b, norm.apply(c, stage, "kv_a_norm", ops.contiguous(narrow), ctx.dtype, c.latent_eps), ctx, "f32")
  local k_nope, v = ops.split(ops.view(kv, { tokens, c.heads, c.nope_size + c.value_size }), { c.nope_size, c.value_size })
  k_rope = ops.view(ops.contiguous(k_rope), { tokens, 1, c.rope_size })
  if c.rotated[stage.index] then
    q_rope = ops.rope(ops.contiguous(q_rope), carry.angles, carry.positions, "f32")
    k_rope = ops.rope(k_rope, carry.angles, carry.positions, "f32")
  end
  q = ops.cat(q_nope, q_rope, 3)
  local k = ops.cat(k_nope, ops.expand(k_rope, { tokens, c.heads, c.rope_size }), 3)
  v = ops.contiguous(v)
  if ctx.dtype ~= "f32" then q, k, v = ops.to(q, ctx.dtype), ops.to(k, ctx.dtype), ops.to(v, ctx.dtype) end
  local mask = { starts = carry.starts, causal = true, window = c.windows[stage.index], scale = c.scales[stage.index] }
  local y = ctx.cache and ctx.cache:attend(stage.index, q, k, v, mask) or ops.attention(q, k, v, mask)
  return linear(w.o, ops.view(y, { tokens, c.heads * c.value_size }), ctx, "f32")
end

-- Heads of the cache: keys', values', and their sizes.
function latent.cache(c) return c.heads, c.nope_size + c.rope_size, c.value_size end

return latent
