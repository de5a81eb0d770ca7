-- Self-attention of a decoder block. Switches in c: heads, kv_heads, head_size, or shapes (of layers that differ: {heads, kv_heads,
-- head_size, value_size, shared_kv: values are the keys' product}); value_norm; value_scale; qkv (nil: three weights; "rows": one, [Q; K; V];
-- "heads": [heads, 3, size]; "groups": [kv heads, heads of a group + 2, size]; "four_parts"); bias {q, k, v, o}; qk_norm ("head",
-- "distinct" for each head, "each" the same as tensors of their own, "full" over all heads) before the rotation or, with norm_after_rope,
-- after it (where there is one); query_scaled (layers whose queries grow with their position; nil: all, if any); scales; attention_cap;
-- clip_qkv; windows; chunks; rotated; slopes (ALiBi); sinks (true, or a list of layers); o_biased (layers whose output has a bias under a
-- name of its own); output_gate (an operation: the result is multiplied by it of a product of x, for each element or, with gate_per_head,
-- head; gate_head_bias: a bias of each head on it); gate_in_q (q's product holds each head's query and what its result is multiplied by
-- the sigmoid of).
local linear = require "onn.nn.linear"
local norm = require "onn.arch.parts.norm"
local ops = require "onn.ops"

local attention = {}

-- Heads and sizes of a layer.
local function shape_of(c, layer)
  return c.shapes and c.shapes[layer] or { heads = c.heads, kv_heads = c.kv_heads, head_size = c.head_size, value_size = c.head_size }
end

local function widths(s) return s.heads * s.head_size, s.kv_heads * s.head_size end

local norm_width = {
  head = function(s) return { s.head_size }, { s.head_size } end,
  each = function(s) return { s.head_size }, { s.head_size } end,
  full = function(s) return { s.heads * s.head_size }, { s.kv_heads * s.head_size } end,
  distinct = function(s) return { s.heads, s.head_size }, { s.kv_heads, s.head_size } end,
}

function attention.tensors(c, layer, add)
  local s = shape_of(c, layer)
  local q, kv = widths(s)
  local n, bias, result = c.names, c.bias, s.heads * s.value_size
  if c.qkv then
    add.linear("qkv", n.qkv, q + 2 * kv, c.width, bias.q)
  else
    add.linear("q", n.q, c.gate_in_q and 2 * q or q, c.width, bias.q)
    add.linear("k", n.k, kv, c.width, bias.k)
    if not s.shared_kv then add.linear("v", n.v, s.kv_heads * s.value_size, c.width, bias.v) end
  end
  if c.output_gate then add.linear("output_gate", n.output_gate, c.gate_per_head and s.heads or result, c.width) end
  if c.gate_head_bias then add.vector("head_gate_bias", n.gate_bias, { s.heads }) end
  add.linear("o", n.o, c.width, result, bias.o)
  if c.o_biased and c.o_biased[layer] then add.vector("o_bias", n.o_bias, { c.width }) end
  if c.qk_norm and not c.qk_norm_plain then
    local of_q, of_k = norm_width[c.qk_norm](s)
    for _, one in ipairs { { "q_norm", of_q, s.heads }, { "k_norm", of_k, s.kv_heads } } do
      local role, shape = one[1], one[2]
      if c.qk_norm == "each" then
        for h = 0, one[3] - 1 do add.vector(role .. h, ("%s.%d.weight"):format(n[role], h), shape) end
      else
        add.vector(role, n[role] .. ".weight", shape)
        if c.qk_norm_bias then add.vector(role .. "_bias", n[role] .. ".bias", shape) end
      end
    end
  end
  if c.names.o_norm then norm.tensors(c, add, "o_norm", n.o_norm, result) end
  if c.sinks == true or c.sinks and c.sinks[layer] then add.vector("sinks", n.sinks, { s.heads }) end
end

local function by_heads(x, count, size) return ops.view(x, { x:size(1), count, size }) end

-- Heads of q, k, v from the one product of all three: (tokens, heads, size) each.
local split = {}

function split.rows(s, y)
  local q, kv = widths(s)
  local a, b, d = ops.split(y, { q, kv, kv })
  return by_heads(a, s.heads, s.head_size), by_heads(b, s.kv_heads, s.head_size), by_heads(d, s.kv_heads, s.head_size)
end

-- [groups, heads of a group + 2, size]; "heads" are groups of one.
function split.groups(s, y)
  local tokens, group = y:size(1), s.heads / s.kv_heads
  local parts = ops.view(y, { tokens, s.kv_heads, (group + 2) * s.head_size })
  local q, k, v = ops.split(parts, { group * s.head_size, s.head_size, s.head_size })
  return by_heads(ops.contiguous(q), s.heads, s.head_size), ops.contiguous(k), ops.contiguous(v)
end
split.heads = split.groups

-- Four parts of [Q; V; K] for a quarter of the heads each.
function split.four_parts(s, y)
  local tokens, quarter = y:size(1), s.heads * s.head_size / 4
  local q, v, k = ops.split(ops.view(y, { tokens, 4, 3 * quarter }), { quarter, quarter, quarter })
  local function all(x) return by_heads(ops.contiguous(x), s.heads, s.head_size) end
  return all(q), all(k), all(v)
end

local function project(c, s, w, x, ctx)
  if w.qkv then return split[c.qkv](s, linear(w.qkv, x, ctx, "f32")) end
  local q, k = linear(w.q, x, ctx, "f32"), linear(w.k, x, ctx, "f32")
  local changed, gate = c.clip_qkv or c.value_norm or c.value_scale, nil
  local v = s.shared_kv and k or linear(w.v, x, ctx, changed and "f32" or nil)
  if c.gate_in_q then
    q, gate = ops.split(by_heads(q, s.heads, 2 * s.head_size), { s.head_size, s.head_size })
    q, gate = ops.contiguous(q), ops.sigmoid(ops.contiguous(gate))
  end
  return by_heads(q, s.heads, s.head_size), by_heads(k, s.kv_heads, s.head_size), by_heads(v, s.kv_heads, s.value_size), gate
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
  -- gradients come back in the arithmetic's dtype, weights are f32
  return ops.to(ops.mul(ops.layer_norm(x, nil, nil, c.eps), ops.view(w, { 1, shape[2], shape[3] })), "f32")
end

local function rotate(c, stage, x, carry, ctx)
  if not c.rotated[stage.index] then return x:dtype() == ctx.dtype and x or ops.to(x, ctx.dtype) end
  local angles = c.local_rope and c.local_rope[stage.index] and carry.local_angles or carry.angles
  return ops.rope(x, angles, carry.positions, ctx.dtype)
end

-- x f32 limited to -most .. most; its gradient comes back in the arithmetic's dtype.
local function clip(x, most)
  local below = ops.relu(ops.affine(x, 1, -most))
  return ops.to(ops.add(ops.sub(x, below), ops.relu(ops.affine(x, -1, -most))), "f32")
end

-- Queries times the factor of their position.
local function grown(q, carry)
  local dtype = q:dtype()
  local factor = ops.view(ops.embedding(carry.query_scales, carry.positions, "f32"), { q:size(1), 1, 1 })
  q = ops.mul(dtype == "f32" and q or ops.to(q, "f32"), factor)
  return dtype == "f32" and q or ops.to(q, dtype)
end

-- x (tokens, width) -> (tokens, width) f32. Queries and keys stay f32 until they are turned: rounding them before and after is a good
-- part of bf16's error.
function attention.forward(c, stage, x, carry, ctx)
  local w, tokens, s = stage.weights, x:size(1), shape_of(c, stage.index)
  local q, k, v, gate = project(c, s, w, x, ctx)
  if c.clip_qkv then q, k, v = clip(q, c.clip_qkv), clip(k, c.clip_qkv), clip(v, c.clip_qkv) end
  if c.value_norm then v = norm.apply(c, stage, "v_norm", v) end
  if c.value_scale then v = ops.affine(v, c.value_scale, 0) end
  if v:dtype() ~= ctx.dtype then v = ops.to(v, ctx.dtype) end
  if c.qk_norm and not c.norm_after_rope then q, k = head_norm(c, stage, "q_norm", q), head_norm(c, stage, "k_norm", k) end
  if c.qk_norm and c.norm_after_rope and c.rotated[stage.index] then
    local plain = { dtype = "f32" }
    q, k = rotate(c, stage, q, carry, plain), rotate(c, stage, k, carry, plain)
    q, k = head_norm(c, stage, "q_norm", q), head_norm(c, stage, "k_norm", k)
    if ctx.dtype ~= "f32" then q, k = ops.to(q, ctx.dtype), ops.to(k, ctx.dtype) end
  else
    q, k = rotate(c, stage, q, carry, ctx), rotate(c, stage, k, carry, ctx)
  end
  if carry.query_scales and (not c.query_scaled or c.query_scaled[stage.index]) then q = grown(q, carry) end
  local mask = { starts = carry.starts, causal = true, window = c.windows[stage.index], scale = c.scales[stage.index], cap = c.attention_cap,
    sinks = w.sinks, bias = carry.slopes, zero = carry.slopes_zero, chunk = c.chunks and c.chunks[stage.index] or nil }
  local y = ctx.cache and ctx.cache:attend(stage.index, q, k, v, mask) or ops.attention(q, k, v, mask)
  if w.output_gate then
    gate = ops.view(linear(w.output_gate, x, ctx, "f32"), { tokens, s.heads, c.gate_per_head and 1 or s.value_size })
    if w.head_gate_bias then gate = ops.add(gate, ops.view(w.head_gate_bias, { 1, s.heads, 1 })) end
    gate = ops[c.output_gate](gate)
  end
  if gate then
    y = ops.mul(ctx.dtype == "f32" and y or ops.to(y, "f32"), gate)
    if ctx.dtype ~= "f32" then y = ops.to(y, ctx.dtype) end
  end
  y = ops.view(y, { tokens, s.heads * s.value_size })
  if c.names.o_norm then y = norm.apply(c, stage, "o_norm", y, ctx.dtype) end
  return linear(w.o, y, ctx, "f32")
end

-- Heads of the cache, and the sizes of keys and values.
function attention.cache(c, layer)
  local s = shape_of(c, layer)
  return s.kv_heads, s.head_size, s.value_size
end

return attention
