-- The cache of generation: for each block with attention, keys and values (sequences, capacity, kv_heads, head_size), and for one whose mixer
-- carries states from token to token, those: f32 (sequences, ...), which do not grow.
-- Capacity doubles as needed; every sequence has its own slot and length.
local core = require "onn.core.ops"
local tensors = require "onn.core.tensor"

local Cache = {}
Cache.__index = Cache

-- A cache for `slots` sequences of a model, the net's own if it has one; capacity is a first guess in tokens.
function Cache.new(model, slots, capacity)
  if model.net.cache then return model.net.cache(model, slots, capacity) end
  local self = setmetatable({ model = model, slots = slots, capacity = 0, lengths = {}, blocks = {}, shapes = {}, state = {} }, Cache)
  for _, stage in ipairs(model.stages) do
    if stage.mixer and stage.mixer.cache then
      local heads, k, v = stage.mixer.cache(model.sizes, stage.index)
      self.shapes[stage.index] = { heads = heads, k = k, v = v }
    end
    if stage.mixer and stage.mixer.state then
      local own = {}
      for name, shape in pairs(stage.mixer.state(model.sizes)) do
        own[name] = tensors.keep(tensors.zeros("f32", { slots, unpack(shape) }))
      end
      self.state[stage.index] = own
    end
  end
  for s = 1, slots do self.lengths[s] = 0 end
  self:reserve(capacity or 256)
  return self
end

-- Makes room for `capacity` tokens in every slot, keeping what is there.
function Cache:reserve(capacity)
  if capacity <= self.capacity then return end
  local size = math.max(64, self.capacity)
  while size < capacity do size = size * 2 end
  local used = math.max(unpack(self.lengths))
  for layer, shape in pairs(self.shapes) do
    local old, new = self.blocks[layer], {}
    for _, part in ipairs { "k", "v" } do
      new[part] = tensors.keep(tensors.new(self.model.dtype, { self.slots, size, shape.heads, shape[part] }))
      if old then
        if used > 0 then new[part]:narrow(2, 1, used):copy(old[part]:narrow(2, 1, used)) end
        old[part]:free()
      end
    end
    self.blocks[layer] = new
  end
  self.capacity = size
end

-- What the block calls while n tokens of one slot's prompt go through: stores k and v, and attends.
local Part = {}
Part.__index = Part

function Part:attend(layer, q, k, v, mask)
  local block, length, n = self.cache.blocks[layer], self.before, q:size(1)
  local keys, values = block.k:select(1, self.slot), block.v:select(1, self.slot)
  keys:narrow(1, length + 1, n):copy(k)
  values:narrow(1, length + 1, n):copy(v)
  keys, values = keys:narrow(1, 1, length + n), values:narrow(1, 1, length + n)
  return (core.attention(q, keys, values, self.q_starts, self.k_starts, true, mask.window or 0, mask.scale, false, mask))
end

-- The borders of the part's tokens, and the layer's states of its slot by name.
function Part:states(layer)
  local own = {}
  for name, t in pairs(self.cache.state[layer]) do own[name] = t:narrow(1, self.slot, 1) end
  return self.q_starts, own
end

-- The next n tokens of slot's prompt, for ctx.cache; several parts may be under way, each slot's in order. The caller has made room,
-- and frees the part.
function Cache:part(slot, n)
  local before = self.lengths[slot]
  self.lengths[slot] = before + n
  return setmetatable({ cache = self, slot = slot, before = before, q_starts = tensors.keep(tensors.from_table({ 0, n }, "i32")),
    k_starts = tensors.keep(tensors.from_table({ 0, before + n }, "i32")) }, Part)
end

function Part:free()
  self.q_starts:free()
  self.k_starts:free()
end

-- Decoding: row s of q, k and v is the next token of slot s.
function Cache:attend(layer, q, k, v, mask)
  local block = self.blocks[layer]
  for s = 1, q:size(1) do
    local at = self.lengths[s] + 1
    block.k:select(1, s):narrow(1, at, 1):copy(k:narrow(1, s, 1))
    block.v:select(1, s):narrow(1, at, 1):copy(v:narrow(1, s, 1))
  end
  return core.attention_decode(q, block.k, block.v, self.valid, mask.window or 0, mask.scale, mask)
end

-- Decoding: the borders of one row of every slot, and the layer's states by name.
function Cache:states(layer) return self.starts, self.state[layer] end

-- Prepares for one row of every slot; finish with advance().
function Cache:decode()
  local valid, starts = {}, {}
  for s = 1, self.slots do valid[s] = self.lengths[s] + 1 end
  for s = 0, self.slots do starts[s + 1] = s end
  self:reserve(math.max(unpack(valid)))
  self.valid, self.starts = tensors.from_table(valid, "i32"), tensors.from_table(starts, "i32")
end

function Cache:advance()
  for s = 1, self.slots do self.lengths[s] = self.lengths[s] + 1 end
end

function Cache:free()
  for _, block in pairs(self.blocks) do block.k:free() block.v:free() end
  for _, own in pairs(self.state) do for _, t in pairs(own) do t:free() end end
  self.blocks, self.state = {}, {}
end

return Cache
