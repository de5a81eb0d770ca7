-- Self-attention of a decoder block. Switches in c: heads, kv_heads, head_size; qkv (nil: three weights; "rows": one, [Q; K; V];
-- "heads": [heads, 3, size]; "groups": [kv heads, heads of a group + 2, size]; "four_parts"); bias {q, k, v, o}; qk_norm ("head",
-- "distinct" for each head, "each" the same as tensors of their own, "full" over all heads) before the rotation or, with norm_after_rope,
-- after it; scales; attention_cap; clip_qkv; windows; chunks; rotated; slopes (ALiBi); sinks; output_gate (an operation: the result is
-- multiplied by it of a product of x, for each element or, with gate_per_head, head).
local linear = require "onn.nn.linear"
local norm = require "onn.arch.parts.norm"
local ops = require "onn.ops"

local attention = {}

local function widths(c) return c.heads * c.head_size, c.kv_heads * c.head_size end

local norm_width = {
  head = function(c) return { c.head_size }, { c.head_size } end,
  each = function(c) return { c.head_size }, { c.head_size } end,
  full = function(c) return { c.heads * c.head_size }, { c.kv_heads * c.head_size } end,
  distinct = function(c) return { c.heads, c.head_size }, { c.kv_heads, c.head_size } end,
}

function attention.tensors(c, _, add)
  local q, kv = widths(c)
  local n, bias = c.names, c.bias
  if c.qkv then
    add.linear("qkv", n.qkv, q + 2 * kv, c.width, bias.q)
  else
    add.linear("q", n.q, q, c.width, bias.q)
    add.linear("k", n.k, kv, c.width, bias.k)
    add.linear("v", n.v, kv, c.width, bias.v)
  end
  if c.output_gate then add.linear("output_gate", n.output_gate, c.gate_per_head and c.heads or q, c.width) end
  add.linear("o", n.o, c.width, q, bias.o)
  if c.qk_norm and not c.qk_norm_plain then
    local of_q, of_k = norm_width[c.qk_norm](c)
    for _, one in ipairs { { "q_norm", of_q, c.heads }, { "k_norm", of_k, c.kv_heads } } do
      local role, shape = one[1], one[2]
      if c.qk_norm == "each" then
        for h = 0, one[3] - 1 do add.vector(role .. h, ("%s.%d.weight"):format(n[role], h), shape) end
      else
        add.vector(role, n[role] .. ".weight", shape)
        if c.qk_norm_bias then add.vector(role .. "_bias", n[role] .. ".bias", shape) end
      end
    end
  end
  if c.names.o_norm then norm.tensors(c, add, "o_norm", n.o_norm, q) end
  if c.sinks then add.vector("sinks", n.sinks, { c.heads }) end
end

local function by_heads(x, count, size) return ops.view(x, { x:size(1), count, size }) end

-- Heads of q, k, v from the one product of all three: (tokens, heads, size) each.
local split = {}

function split.rows(c, y)
  local q, kv = widths(c)
  local a, b, d = ops.split(y, { q, kv, kv })
  return by_heads(a, c.heads, c.head_size), by_heads(b, c.kv_heads, c.head_size), by_heads(d, c.kv_heads, c.head_size)
end

-- [groups, heads of a group + 2, size]; "heads" are groups of one.
function split.groups(c, y)
  local tokens, group = y:size(1), c.heads / c.kv_heads
  local parts = ops.view(y, { tokens, c.kv_heads, (group + 2) * c.head_size })
  local q, k, v = ops.split(parts, { group * c.head_size, c.head_size, c.head_size })
  return by_heads(ops.contiguous(q), c.heads, c.head_size), ops.contiguous(k), ops.contiguous(v)
end
split.heads = split.groups

-- Four parts of [Q; V; K] for a quarter of the heads each.
function split.four_parts(c, y)
  local tokens, quarter = y:size(1), c.heads * c.head_size / 4
  local q, v, k = ops.split(ops.view(y, { tokens, 4, 3 * quarter }), { quarter, quarter, quarter })
  local function all(x) return by_heads(ops.contiguous(x), c.heads, c.head_size) end
  return all(q), all(k), all(v)
end

local function project(c, w, x, ctx)
  if w.qkv then return split[c.qkv](c, linear(w.qkv, x, ctx, "f32")) end
  local q, k, v = linear(w.q, x, ctx, "f32"), linear(w.k, x, ctx, "f32"), linear(w.v, x, ctx, c.clip_qkv and "f32" or nil)
  return by_heads(q, c.heads, c.head_size), by_heads(k, c.kv_heads, c.head_size), by_heads(v, c.kv_heads, c.head_size)
end

local function head_norm(c, stage, role, x)
  if c.qk_norm == "head" then
    if c.qk_norm_kind == "layer" then
      return ops.layer_norm(x, stage.weights[role], stage.weights[role .. "_bias"], c.qk_norm_eps or c.eps)
    end
    return norm.apply(c, stage, role, x)
  end
  local shape, w = x:shape(), stage.weights[role]
  if c.qk_norm == "full" then
    local flat = norm.apply(c, stage, role, ops.view(ops.contiguous(x), { shape[1], shape[2] * shape[3] }))
    return by_heads(flat, shape[2], shape[3])
  end
  if c.qk_norm == "each" then
    for h = 0, shape[2] - 1 do
      local row = ops.view(stage.weights[role .. h], { 1, shape[3] })
      w = w and ops.cat(w, row, 1) or row
    end
  end
  return ops.mul(ops.layer_norm(x, nil, nil, c.eps), ops.view(w, { 1, shape[2], shape[3] }))
end

local function rotate(c, stage, x, carry, ctx)
  if not c.rotated[stage.index] then return x:dtype() == ctx.dtype and x or ops.to(x, ctx.dtype) end
  local angles = c.local_rope and c.local_rope[stage.index] and carry.local_angles or carry.angles
  return ops.rope(x, angles, carry.positions, ctx.dtype)
end

-- x limited to -most .. most.
local function clip(x, most)
  local below = ops.relu(ops.affine(x, 1, -most))
  return ops.add(ops.sub(x, below), ops.relu(ops.affine(x, -1, -most)))
end

-- x (tokens, width) -> (tokens, width) f32. Queries and keys stay f32 until they are turned: rounding them before and after is a good
-- part of bf16's error.
function attention.forward(c, stage, x, carry, ctx)
  local w, tokens = stage.weights, x:size(1)
  local q, k, v = project(c, w, x, ctx)
  if c.clip_qkv then q, k, v = clip(q, c.clip_qkv), clip(k, c.clip_qkv), clip(v, c.clip_qkv) end
  if v:dtype() ~= ctx.dtype then v = ops.to(v, ctx.dtype) end
  if c.qk_norm and not c.norm_after_rope then q, k = head_norm(c, stage, "q_norm", q), head_norm(c, stage, "k_norm", k) end
  if c.qk_norm and c.norm_after_rope then
    local plain = { dtype = "f32" }
    q, k = rotate(c, stage, q, carry, plain), rotate(c, stage, k, carry, plain)
    q, k = head_norm(c, stage, "q_norm", q), head_norm(c, stage, "k_norm", k)
    if ctx.dtype ~= "f32" then q, k = ops.to(q, ctx.dtype), ops.to(k, ctx.dtype) end
  else
    q, k = rotate(c, stage, q, carry, ctx), rotate(c, stage, k, carry, ctx)
  end
  local mask = { starts = carry.starts, causal = true, window = c.windows[stage.index], scale = c.scales[stage.index], cap = c.attention_cap,
    sinks = w.sinks, bias = carry.slopes, zero = carry.slopes_zero, chunk = c.chunks and c.chunks[stage.index] or nil }
  local y = ctx.cache and ctx.cache:attend(stage.index, q, k, v, mask) or ops.attention(q, k, v, mask)
  if w.output_gate then
    local gate = ops[c.output_gate](linear(w.output_gate, x, ctx, "f32"))
    gate = ops.view(gate, { tokens, c.heads, c.gate_per_head and 1 or c.head_size })
    y = ops.mul(ctx.dtype == "f32" and y or ops.to(y, "f32"), gate)
    if ctx.dtype ~= "f32" then y = ops.to(y, ctx.dtype) end
  end
  y = ops.view(y, { tokens, c.heads * c.head_size })
  if c.names.o_norm then y = norm.apply(c, stage, "o_norm", y, ctx.dtype) end
  return linear(w.o, y, ctx, "f32")
end

-- Heads of the cache, and the sizes of keys and values.
function attention.cache(c) return c.kv_heads, c.head_size, c.head_size end

return attention
