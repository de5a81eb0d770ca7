-- Attention whose queries and output products are experts (JetMoE): every token chooses per_token of them, each with a head of queries for
-- every head of keys. Switches in c: moe (experts, per_token), kv_heads, head_size.
local linear = require "onn.nn.linear"
local moe = require "onn.arch.parts.moe"
local ops = require "onn.ops"
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"

local attention = {}

function attention.tensors(c, _, add)
  local n, kv = c.names, c.kv_heads * c.head_size
  add.matrix("query_router", n.query_router .. ".weight", { c.moe.experts, c.width })
  add.stacked("queries", n.queries, c.moe.experts, kv, c.width, "queries")
  add.linear("kv", n.kv, 2 * kv, c.width)
  add.stacked("outputs", n.outputs, c.moe.experts, c.width, kv, "outputs")
  add.vector("o_bias", n.o_bias, { c.width })
end

-- Each of `of` experts' product of its rows of x, put where `to` says: f32 (rows, width).
local function by_experts(of, experts, weights, x, ctx, from, to, rows, weight_of)
  local sum
  for e = 0, of - 1 do
    local own = experts[e]
    if own then
      local layer = moe.layer(weights, nil, e)
      local function run()
        local y = linear(layer, ops.gather_rows(x, tensors.from_table(own[from], "i32")), ctx, "f32")
        if weight_of then y = ops.mul(y, weight_of(own)) end
        return ops.scatter_add_rows(y, tensors.from_table(own[to], "i32"), rows)
      end
      local y = own.starts and tape.with_starts(own.starts, run) or run()
      sum = sum and ops.add(sum, y) or y
    end
  end
  return sum
end

-- (tokens, a, b, size) -> (tokens, b, a, size)
local function swapped(x, tokens, a, b, size) return ops.contiguous(ops.transpose(ops.view(x, { tokens, a, b, size }), 2, 3)) end

-- x (tokens, width) -> (tokens, width) f32
function attention.forward(c, stage, x, carry, ctx)
  local w, tokens, kv, size, each = stage.weights, x:size(1), c.kv_heads, c.head_size, c.moe.per_token
  local values, rows = moe.route(c, { router = w.query_router }, x)
  local experts = moe.gathered(c.moe, rows, tape.recording() and carry.starts)
  local q = by_experts(c.moe.experts, experts, w.queries, x, ctx, "tokens", "places", tokens * each)
  q = ops.view(swapped(q, tokens, each, kv, size), { tokens, kv * each, size })
  local k, v = ops.split(linear(w.kv, x, ctx, "f32"), { kv * size, kv * size })
  k = ops.view(ops.contiguous(k), { tokens, kv, size })
  q, k = ops.rope(q, carry.angles, carry.positions, ctx.dtype), ops.rope(k, carry.angles, carry.positions, ctx.dtype)
  v = ops.view(ops.contiguous(v), { tokens, kv, size })
  if ctx.dtype ~= "f32" then v = ops.to(v, ctx.dtype) end
  local mask = { starts = carry.starts, causal = true, window = c.windows[stage.index], scale = c.scales[stage.index] }
  local y = ctx.cache and ctx.cache:attend(stage.index, q, k, v, mask) or ops.attention(q, k, v, mask)
  y = ops.view(swapped(y, tokens, kv, each, size), { tokens * each, kv * size })
  local flat = ops.view(values, { tokens * each, 1 })
  y = by_experts(c.moe.experts, experts, w.outputs, y, ctx, "places", "tokens", tokens, function(own)
    return ops.gather_rows(flat, tensors.from_table(own.places, "i32"))
  end)
  return ops.add(y, ops.view(w.o_bias, { 1, c.width }))
end

-- Heads of the cache, and the sizes of keys and values.
function attention.cache(c) return c.kv_heads, c.head_size, c.head_size end

return attention
