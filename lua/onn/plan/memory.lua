-- Bytes that rest on the device: weights, and what training keeps of each. What passes through takes more: see onn.plan.costs.
local lora = require "onn.nn.lora"

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
      local stored = model.store:info(t.name) or { dtype = "F32", bytes = 4 * elements(t.shape) } -- what is made new
      local wanted = t.vector and "F32" or (model.dtype == "bf16" and "BF16" or stored.dtype)
      if stored.dtype ~= wanted then largest = math.max(largest, taken(stored.bytes)) end
    end
  end
  return largest
end

-- Elements of a layer's A and B: in all, and of each.
function memory.adapter(layer, rank)
  local a, b = lora.shapes(layer, rank)
  a, b = elements(a), elements(b)
  return a + b, a, b
end

-- What rests on the device beside the weights: adapters or trained weights, their gradients, moments and copies.
-- `modules` lists the layers that get adapters.
function memory.state(model, opt, modules)
  local bytes, sizes = 0, {}
  if opt.full then
    for _, stage in ipairs(model.stages) do
      for _, t in ipairs(stage.tensors) do
        local n = t.state and 0 or elements(t.shape)
        local master = not t.vector and model.dtype == "bf16" and 1 or 0
        bytes, sizes[t.name] = bytes + (3 + master) * taken(n * 4), n
      end
    end
    for _, stage in ipairs(model.stages) do -- a shared weight has a second gradient
      for _, name in pairs(stage.shares or {}) do bytes = bytes + taken(sizes[name] * 4) end
    end
    return bytes
  end
  for _, stage in ipairs(model.stages) do -- what is trained beside adapters, whole
    for _, t in ipairs(stage.tensors) do if t.saved then bytes = bytes + 4 * taken(elements(t.shape) * 4) end end
  end
  for _, m in ipairs(modules) do
    for _, size in ipairs { select(2, memory.adapter(m, opt.rank)) } do
      bytes = bytes + 4 * taken(size * 4) + (model.dtype == "bf16" and taken(size * 2) or 0)
    end
  end
  return bytes
end

-- Bytes of what stays in memory when matrices are streamed: vectors.
function memory.vectors(model)
  local total = 0
  for _, stage in ipairs(model.stages) do
    for _, t in ipairs(stage.tensors) do if t.vector then total = total + memory.weight(model, t) end end
  end
  return total
end

return memory
