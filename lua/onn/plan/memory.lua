-- The bytes of training: what the sweeps of onn.sweep hold at their largest moments, counted tensor by tensor as the rules of
-- onn.autograd.rules save and make them. An upper bound: a spec compares it with what is measured.
-- Letters: T tokens of a micro-batch; a tensor is counted by its width, in elements of the arithmetic's dtype or in f32.
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
  local each = t.vector and 4 or (model.dtype == "bf16" and 2 or model.store:info(t.name).bytes / n)
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
      local stored = model.store:info(t.name)
      local wanted = t.vector and "F32" or (model.dtype == "bf16" and "BF16" or stored.dtype)
      if stored.dtype ~= wanted then largest = math.max(largest, taken(stored.bytes)) end
    end
  end
  return largest
end

local function sizes_of(model, opt)
  local c = model.sizes
  return { width = c.width, q = c.heads * c.head_size, kv = c.kv_heads * c.head_size, inner = c.inner, heads = c.heads,
    kv_heads = c.kv_heads,
    e = model.dtype == "bf16" and 2 or 4, rank = opt.full and 0 or opt.rank, dropout = not opt.full and (opt.dropout or 0) > 0,
    fused = c.fused ~= nil, qk_norm = c.qk_norm ~= nil }
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

-- Scratch of a product over T rows: rows packed, in blocks of 32 and cuts of the depth (at most 2048 at once, and 512 or 16 MB of them),
-- an adapter's A or B; for each thread two pieces of the weight, of 8 panels and one cut, and 512 rows' sums of those panels.
local function product_scratch(s, tokens, depth)
  local rank, threads, rows = math.ceil(s.rank / 32) * 32, tensors.threads(), math.min(math.ceil(tokens / 32) * 32, 2048)
  local cuts = math.max(1, math.floor(depth / 256 + 0.5))
  local cut = math.ceil(depth / cuts / 32) * 32
  local line = cuts * cut * s.e
  local sums = cuts > 1 and 8 * 32 * math.min(rows, 512) * 4 or 0
  return taken(math.min(rows * line, math.max(512 * line, 2 ^ 24)) + (rows * s.e + line) * rank
    + threads * ((2 * 8 * cut + rank) * 32 * s.e + sums))
end

-- Scratch of a weight's gradient: eight tiles of 128 tokens of the narrower side, packed.
local function gradient_scratch(lines) return taken((8 * math.ceil(lines / 32) * 32 + 32 * tensors.threads()) * 128 * 4) end

-- Scratch of the head and its loss: a tile of 128 tokens' logits, their operands, sums of the input's gradient.
local function head_scratch(s, vocabulary)
  local depth = math.max(math.ceil(s.width / 32) * 32, 512)
  return taken(128 * depth * 4 + 128 * (math.ceil(vocabulary / 32) * 32 + 16) * 4 + 128 * math.ceil(s.width / 32) * 32 * 4
    + 32 * tensors.threads() * depth * 4 + 2048)
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

-- training(model, opt, facts) -> bytes at the largest moment beside weights and state, and the share of it that is tapes.
-- opt: rank, full, dropout, seq_len; facts: {tokens, recompute, lowest (number of the lowest trained block), trained (set)}.
function memory.training(model, opt, facts)
  local s, c, T = sizes_of(model, opt), model.sizes, facts.tokens
  local blocks, tapes, largest, wide, any = 0, 0, 0, 0, false
  for index = facts.lowest, c.layers - 1 do
    local trained = opt.full or facts.trained[index] or false
    local tape = block_tape(s, T, trained)
    local all, at_wide = block_gradients(s, T, trained)
    blocks, tapes, any = blocks + 1, tapes + tape, any or trained
    largest, wide = math.max(largest, all + (facts.recompute and tape or 0)), math.max(wide, at_wide + (facts.recompute and tape or 0))
  end
  if facts.recompute then tapes = hold(T, 4, { s.width }) * blocks end
  -- the batch, positions' table, the last hidden state and its gradient stay through the sweep; lists of tiles and the like are small
  local kept = tapes + 2 ^ 16 + taken(T * 28) + hold(T, 4, { s.width, s.width })
    + 2 * taken(math.max(256, 2 * opt.seq_len) * model.sizes.rope.dims / 2 * 4)
  local product = product_scratch(s, T, math.max(s.inner, s.fused and 2 * s.inner or 0))
  local weight = opt.full and gradient_scratch(math.min(s.inner, s.width)) or gradient_scratch(s.rank)
  local head = hold(T, s.e, { s.width, s.width }) + hold(T, 4, { 1, 1 }) + head_scratch(s, c.vocabulary)
    + (opt.full and gradient_scratch(s.width) or 0)
  local back = math.max(largest, wide + math.max(product, weight), largest - hold(T, 4, { s.width, s.width }) + attention_scratch(s,
    opt.seq_len))
  return kept + math.max(back, head), tapes
end

return memory
