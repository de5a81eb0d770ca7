-- Differential attention (arXiv 2410.05258), as DiffLlama has it: the second half of the heads, times a learned factor, is taken away from the
-- first; both see values of twice the size, a pair of heads' side by side. Switches in c: heads, kv_heads (both even), head_size.
local linear = require "onn.nn.linear"
local ops = require "onn.ops"
local tensors = require "onn.core.tensor"

local difference = {}

local factors = { "lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2" }

function difference.tensors(c, _, add)
  local n, bias, kv = c.names, c.bias, c.kv_heads * c.head_size
  add.linear("q", n.q, c.heads * c.head_size, c.width, bias.q)
  add.linear("k", n.k, kv, c.width, bias.k)
  add.linear("v", n.v, kv, c.width, bias.v)
  add.linear("o", n.o, c.width, c.heads * c.head_size, bias.o)
  for _, role in ipairs(factors) do add.vector(role, n[role], { c.head_size }) end
end

-- What the factor of layer `index` is around, before learning.
local function start_of(index) return 0.8 - 0.6 * math.exp(-0.3 * index) end

local function factor(w, start)
  local function part(i)
    local product = ops.mul(w["lambda_q" .. i], w["lambda_k" .. i])
    return ops.exp(ops.sum(ops.view(product, { 1, product:size(1) })))
  end
  return ops.view(ops.affine(ops.sub(part(1), part(2)), 1, start), { 1, 1, 1 })
end

-- x (tokens, width) -> (tokens, width) f32
function difference.forward(c, stage, x, carry, ctx)
  local w, tokens, size, half = stage.weights, x:size(1), c.head_size, c.kv_heads / 2
  local q = ops.rope(ops.view(linear(w.q, x, ctx, "f32"), { tokens, c.heads, size }), carry.angles, carry.positions, ctx.dtype)
  local k = ops.rope(ops.view(linear(w.k, x, ctx, "f32"), { tokens, c.kv_heads, size }), carry.angles, carry.positions, ctx.dtype)
  local v1, v2 = ops.split(linear(w.v, x, ctx), { half * size, half * size })
  local pair = ops.cat(ops.view(ops.contiguous(v1), { tokens, half, size }), ops.view(ops.contiguous(v2), { tokens, half, size }), 3)
  local v = ops.cat(pair, pair, 2)
  local mask = { starts = carry.starts, causal = true, window = c.windows[stage.index], scale = c.scales[stage.index] }
  local y = ctx.cache and ctx.cache:attend(stage.index, q, k, v, mask) or ops.attention(q, k, v, mask)
  if ctx.dtype ~= "f32" then y = ops.to(y, "f32") end
  local heads, start = c.heads / 2, start_of(stage.index)
  local first, second = ops.split(ops.view(y, { tokens, c.heads * 2 * size }), { heads * 2 * size, heads * 2 * size })
  first = ops.view(ops.contiguous(first), { tokens, heads, 2 * size })
  second = ops.view(ops.contiguous(second), { tokens, heads, 2 * size })
  y = ops.sub(first, ops.mul(second, factor(w, start)))
  y = ops.rms_norm(y, tensors.new("f32", { 2 * size }):fill(1), c.eps)
  y = ops.view(ops.affine(y, 1 - start, 0), { tokens, c.heads * size })
  return linear(w.o, ctx.dtype == "f32" and y or ops.to(y, ctx.dtype), ctx, "f32")
end

-- Heads of the cache, and the sizes of keys and values.
function difference.cache(c) return c.kv_heads, c.head_size, 2 * c.head_size end

return difference
