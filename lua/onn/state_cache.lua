-- What state-space blocks carry from token to token in generation: for each block the convolution's last inputs f32 (sequences, size - 1,
-- channels) and the states f32 (sequences, channels, states). It does not grow. The interface is onn.cache's, but for states().
local tensors = require "onn.core.tensor"

local StateCache = {}
StateCache.__index = StateCache

-- A cache for `slots` sequences of a model.
function StateCache.new(model, slots)
  local c = model.sizes
  local self = setmetatable({ slots = slots, lengths = {}, blocks = {} }, StateCache)
  for s = 1, slots do self.lengths[s] = 0 end
  for layer = 0, c.layers - 1 do
    self.blocks[layer] = { conv = tensors.keep(tensors.zeros("f32", { slots, c.conv - 1, c.channels })),
      scan = tensors.keep(tensors.zeros("f32", { slots, c.inner, c.states })) }
  end
  return self
end

-- Room for any number of tokens is there.
function StateCache.reserve() end

local Part = {}
Part.__index = Part

-- starts, the convolution's state, the scan's: of one slot.
function Part:states(layer)
  local block = self.cache.blocks[layer]
  return self.q_starts, block.conv:narrow(1, self.slot, 1), block.scan:narrow(1, self.slot, 1)
end

-- The next n tokens of slot's prompt, for ctx.cache; parts of one slot run in order. The caller frees it.
function StateCache:part(slot, n)
  local before = self.lengths[slot]
  self.lengths[slot] = before + n
  return setmetatable({ cache = self, slot = slot, before = before, q_starts = tensors.keep(tensors.from_table({ 0, n }, "i32")) }, Part)
end

function Part:free() self.q_starts:free() end

-- Decoding: one row of every slot.
function StateCache:states(layer)
  local block = self.blocks[layer]
  return self.starts, block.conv, block.scan
end

-- Prepares for one row of every slot; finish with advance().
function StateCache:decode()
  local starts = {}
  for s = 0, self.slots do starts[s + 1] = s end
  self.starts = tensors.from_table(starts, "i32")
end

function StateCache:advance()
  for s = 1, self.slots do self.lengths[s] = self.lengths[s] + 1 end
end

function StateCache:free()
  for _, block in pairs(self.blocks) do block.conv:free() block.scan:free() end
  self.blocks = {}
end

return StateCache
