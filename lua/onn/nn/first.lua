-- First values of a weight that training begins with; its numbers depend on the seed and its name alone.
local core = require "onn.core.ops"
local tensors = require "onn.core.tensor"

local first = {}

-- kind "normal" (size: the deviation), "uniform" (the bound) or "constant" (the value); t {name, shape}. Returns a tensor f32.
function first.value(kind, size, t, seed)
  local w = tensors.new("f32", t.shape)
  if kind == "constant" then return w:fill(size) end
  if kind == "uniform" then return core.uniform(w, seed, "init/" .. t.name, 0, -size, size) end
  return core.normal(w, seed, "init/" .. t.name, 0, size)
end

return first
