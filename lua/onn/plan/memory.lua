-- The bytes of training: what the sweeps of onn.sweep hold at their largest moments, counted tensor by tensor as the rules of
-- onn.autograd.rules save and make them. An upper bound: a spec compares it with what is measured.
-- Letters: T tokens of a micro-batch; a tensor is counted by its width, in elements of the arithmetic's dtype or in f32.
local core = require "onn.core.ops"
local tensors = require "onn.core.tensor"

local memory = {}

-- What the allocator takes for `bytes` (host/memory.c).
local function taken(bytes)
  local step = 64
  if bytes >= 2 ^ 18 then step = 2 ^ 16 else while step * 16 < bytes do step = step * 2 end end
  return math.ceil(bytes / step) * step
end

local function elements(shape)
  local n = 1
  for _, size in ipairs(shape) do n = n * size end
  return n
end

-- Bytes that a weight, a tensor of one of the model's stages, takes on the device in the model's arithmetic.
function memory.weight(model, t)
  local n = elements(t.shape)
  local each = t.vector and 4 or (model.dtype == "bf16" and 2 or t.made and 4 or model.store:info(t.name).bytes / n)
  return taken(n * each)
end

-- Bytes of all of them.
function memory.weights(model)
  local total = 0
  for _, stage in ipairs(model.stages) do
    for _, t in ipairs(stage.tensors) do total = total + memory.weight(model, t) end
  end
  return total
end

-- What loading takes beside the weights: the largest tensor that is converted, as it is stored.
function memory.loading(model)
  local largest = 0
  for _, stage in ipairs(model.stages) do
    for _, t in ipairs(stage.tensors) do
      local stored = model.store:info(t.name) or { dtype = "F32" } -- what is made new
      local wanted = t.vector and "F32" or (model.dtype == "bf16" and "BF16" or stored.dtype)
      if stored and stored.dtype ~= wanted then largest = math.max(largest, taken(stored.bytes)) end
    end
  end
  return largest
end

local function sizes_of(model, opt)
  local c = model.sizes
  return { width = c.width, q = c.heads * c.head_size, kv = c.kv_heads * c.head_size, inner = c.inner, heads = c.heads,
    kv_heads = c.kv_heads,
    e = model.dtype == "bf16" and 2 or 4, rank = opt.full and 0 or opt.rank, dropout = not opt.full and (opt.dropout or 0) > 0,
    fused = c.qkv ~= nil, qk_norm = c.qk_norm ~= nil }
end

-- Tensors of T tokens, `widths` wide and of `each` bytes an element, as the allocator takes them.
local function hold(tokens, each, widths)
  local total = 0
  for _, width in ipairs(widths) do if width > 0 then total = total + taken(tokens * width * each) end end
  return total
end

-- Inputs of the linear layers of a block, by width: q, k, v; o; gate, up; down.
local function inputs(s) return { s.width, s.width, s.width, s.q, s.width, s.width, s.inner } end

-- What the tape of one block keeps. trained: adapters sit on it, or its weights are trained.
local function block_tape(s, tokens, trained)
  local bytes = hold(tokens, 4, { s.width, s.width, 1, 1, s.heads })                            -- input and middle; norms; log-sum-exp
    + hold(tokens, s.e, { s.q, s.kv, s.kv, s.q, s.inner, s.inner })                              -- attention in and out; gate, up
  if s.fused and s.e == 4 then bytes = bytes + hold(tokens, s.e, { s.q + s.kv }) end              -- v is a view of q, k, v
  if s.qk_norm then bytes = bytes + hold(tokens, 4, { s.q, s.kv, s.heads, s.kv_heads }) end
  if not trained then return bytes end
  if s.dropout then
    bytes = bytes + hold(tokens, s.e, inputs(s))
  else
    bytes = bytes + hold(tokens, s.e, { s.width, s.width, s.inner })                              -- the norms' results, gated
  end
  for _ = 1, 7 do bytes = bytes + hold(tokens, s.e, { s.rank }) end
  return bytes
end

-- What walking back through one block makes and holds until its end, and what it holds when its widest product runs.
local function block_gradients(s, tokens, trained)
  local wide = hold(tokens, 4, { s.width }) + hold(tokens, s.e, { s.inner, s.inner, s.inner, s.width })
  local rest = hold(tokens, 4, { s.width, s.width, s.width, s.width }) + hold(tokens, s.e, { s.q, s.q, s.kv, s.kv, s.q, s.kv, s.width })
  if s.e == 2 then wide, rest = wide + hold(tokens, s.e, { s.width }), rest + hold(tokens, s.e, { s.width }) end
  if s.fused then wide, rest = wide + hold(tokens, s.e, { 2 * s.inner }), rest + hold(tokens, s.e, { s.q + 2 * s.kv }) end
  if s.qk_norm then rest = rest + hold(tokens, 4, { s.q, s.kv }) + (s.e == 2 and hold(tokens, s.e, { s.q, s.kv }) or 0) end
  if trained then
    for _ = 1, 3 do wide = wide + hold(tokens, s.e, { s.rank }) end
    for _ = 1, 4 do rest = rest + hold(tokens, s.e, { s.rank }) end
    if s.dropout then
      wide = wide + 2 * hold(tokens, s.e, { s.inner, s.width, s.width })
      rest = rest + 2 * hold(tokens, s.e, { s.q, s.width, s.width, s.width })
    end
  end
  return wide + rest, wide
end

-- What one block forward, without a tape, makes and holds until its end, its output included; and what of it is there at the attention.
local function block_forward(s, tokens)
  local first = hold(tokens, s.e, { s.width, s.kv, s.q, s.kv, s.q }) + hold(tokens, 4, s.fused and { s.q + 2 * s.kv } or { s.q, s.kv })
  if s.qk_norm then first = first + hold(tokens, 4, { s.q, s.kv }) end
  return first + hold(tokens, 4, { s.width, s.width, s.width, s.width }) + hold(tokens, s.e, { s.width, s.inner, s.inner, s.inner }), first
end

-- Scratch of a product over T rows: rows packed, in blocks of 32 and cuts of the depth (at most 2048 at once, and 512 or 16 MB of them),
-- an adapter's A or B; for each thread two pieces of the weight, of 8 panels (16 for few rows of bf16) and one cut, and 512 rows' sums of
-- those panels.
local function product_scratch(s, tokens, depth)
  local rank, threads, rows = math.ceil(s.rank / 32) * 32, tensors.threads(), math.min(math.ceil(tokens / 32) * 32, 2048)
  local cuts = math.max(1, math.floor(depth / 256 + 0.5))
  local cut = math.ceil(depth / cuts / 32) * 32
  local line = cuts * cut * s.e
  local panels = s.e == 2 and rows <= 128 and math.max(8, math.min(16, math.ceil(math.max(s.width, s.inner, s.q) / 32))) or 8
  local sums = cuts > 1 and panels * 32 * math.min(rows, 512) * 4 or 0
  return taken(math.min(rows * line, math.max(512 * line, 2 ^ 24)) + (rows * s.e + line) * rank
    + threads * ((2 * panels * cut + rank) * 32 * s.e + sums))
end

-- Scratch of a weight's gradient: eight tiles of 128 tokens of the narrower side, packed.
local function gradient_scratch(lines) return taken((8 * math.ceil(lines / 32) * 32 + 32 * tensors.threads()) * 128 * 4) end

-- Scratch of an adapter's gradients: the same of the two sides that are as wide as the rank (kernels/cpu/lora.c).
local function adapter_scratch(s) return taken((2 * 8 * math.ceil(s.rank / 32) * 32 + 32 * tensors.threads()) * 128 * 4) end

-- Scratch of the head and its loss: per token a sum as wide as x and the label's row; and for at most 1024 tokens at once and one cut
-- of the vocabulary, logits, exponentials, x and w as they are multiplied (kernels/cpu/head_loss.c).
local function head_scratch(s, tokens, vocabulary)
  local cut, _, native = core.head_cut, tensors.backend()
  local entries, wide, rows = math.min(math.ceil(vocabulary / 32) * 32, cut), math.ceil(s.width / 32) * 32, math.min(tokens, 1024) + 35
  local each = native and s.e or 4
  return taken(tokens * 12 + (tokens + 31) * wide * 4 + tokens * s.width * s.e + 64) + taken(tokens * 4)
    + taken(rows * wide * each + rows * entries * 4 + rows * cut * each + entries * wide * each + rows * 4
      + tensors.threads() * 4 * (32 * math.max(s.width, cut) + 320 * 32 + 16) + 1024)
end

-- One thread's keys, values and their gradients in f32 over the longest sequence, and tiles of queries.
local function attention_scratch(s, seq_len)
  local size = math.ceil(s.q / s.heads / 16) * 16
  return taken(tensors.threads() * ((math.ceil(seq_len / 64) * 64) * size * 4 * 5 + 64 * size * 4 * 8 + 64 * 64 * 4 * 6))
end

-- What rests on the device beside the weights: adapters or trained weights, their gradients, moments and copies.
-- `modules` lists the shapes of what is trained: {out, into}.
function memory.state(model, opt, modules)
  local bytes, c = 0, model.sizes
  if opt.full then
    for _, stage in ipairs(model.stages) do
      for _, t in ipairs(stage.tensors) do
        local n = elements(t.shape)
        local master = not t.vector and model.dtype == "bf16" and 1 or 0
        bytes = bytes + (3 + master) * taken(n * 4)
      end
      if next(stage.shares or {}) then bytes = bytes + taken(c.vocabulary * c.width * 4) end -- a shared weight's second gradient
    end
    return bytes
  end
  for _, m in ipairs(modules) do
    for _, size in ipairs { m.out * opt.rank, m.into * opt.rank } do
      bytes = bytes + 4 * taken(size * 4) + (model.dtype == "bf16" and taken(size * 2) or 0)
    end
  end
  return bytes
end

-- What micro-batches of `tokens` tokens take beside weights and state. opt: rank, full, dropout, seq_len; facts: {tokens, lowest
-- (number of the lowest trained block), trained (set), tiled (matrices come in row tiles)}. Returns {
--   carry: a hidden state between two stages, f32;  tapes: {[block] = what its kept tape holds beside its input};
--   kept, rebuilt: the largest moment of walking back through a block whose tape was kept, or is rebuilt;
--   batch: ids, labels and the like;  common: what a sweep holds once;  head(n, back): the head's moment with n micro-batches at once }.
function memory.micro_batch(model, opt, facts)
  local s, c, T = sizes_of(model, opt), model.sizes, facts.tokens
  local product = product_scratch(s, T, math.max(s.inner, s.fused and 2 * s.inner or 0))
  local weight = opt.full and gradient_scratch(math.min(s.inner, s.width)) or adapter_scratch(s)
  local carry, attention = hold(T, 4, { s.width }), attention_scratch(s, opt.seq_len)
  local micro = { carry = carry, tapes = {}, kept = 0, rebuilt = 0, batch = taken(T * 28) + 2 ^ 13 }
  for index = facts.lowest, c.layers - 1 do
    local trained = opt.full or facts.trained[index] or false
    local tape, all, wide = block_tape(s, T, trained) - carry, block_gradients(s, T, trained)
    local widest, last = 0, 0 -- a gradient that is summed over row tiles is f32 until it is whole
    if facts.tiled and s.e == 2 then widest, last = hold(T, 4, { math.max(s.inner, s.q, s.width) }), carry end
    local back = math.max(all + last, wide + widest + math.max(product, weight), all - 2 * carry + attention)
    micro.tapes[index] = tape
    micro.kept, micro.rebuilt = math.max(micro.kept, back), math.max(micro.rebuilt, back + tape + carry) -- and its output made again
  end
  if facts.lowest >= c.layers then -- nothing is walked back
    local all, first = block_forward(s, T)
    micro.kept = math.max(all + product, first + attention)
    micro.rebuilt = micro.kept
  end
  -- the positions' table; lists of tiles and the like are small
  micro.common = 2 ^ 16 + (c.rope and 2 * taken(math.max(256, 2 * opt.seq_len) * c.rope.dims / 2 * 4) or 0)
    + (c.alibi and taken(math.max(256, 2 * opt.seq_len) * c.heads * 4) or 0)
  function micro.head(n, back)
    local x, state = hold(T, s.e, { s.width }) + hold(T, 4, { 1, 1 }), hold(T, 4, { 3 })
    if back then state = state + hold(T, 4, { s.width }) + hold(T, s.e, { s.width }) end
    return n * x + (n - 1) * state + head_scratch(s, T, c.vocabulary) + hold(T, s.e, { s.width }) + 2 * carry
      + (opt.full and gradient_scratch(s.width) or 0)
  end
  return micro
end

-- Bytes of what stays in memory when matrices are streamed: vectors.
function memory.vectors(model)
  local total = 0
  for _, stage in ipairs(model.stages) do
    for _, t in ipairs(stage.tensors) do if t.vector then total = total + memory.weight(model, t) end end
  end
  return total
end

-- Bytes of the key-value cache of `slots` sequences with room for `tokens` each (lua/onn/cache.lua doubles its capacity).
function memory.cache(model, slots, tokens)
  local c, room = model.sizes, 64
  while room < tokens do room = room * 2 end
  return 2 * c.layers * taken(slots * room * c.kv_heads * c.head_size * (model.dtype == "bf16" and 2 or 4))
end

return memory
