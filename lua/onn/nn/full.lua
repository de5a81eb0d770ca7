-- Training all of a model's own weights: f32 masters that the optimizer moves, and bf16 copies where the arithmetic is bf16.
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"

local full = {}

local function zeros_like(t) return tensors.keep(tensors.zeros("f32", t:shape())) end

-- Registers every weight of the loaded model (of the stages in `wanted`, {[position]=true}, or all) for training.
-- Returns parameters for an optimizer: {name, value, gradients, shadow}.
function full.parameters(model, wanted)
  local params, by_name = {}, {}
  local function register(name, used)
    local value, compute = used, used
    if used:dtype() ~= "f32" then
      value = tensors.keep(used:to "f32")
      if model.dtype ~= "bf16" then
        used:free()
        compute = value
      end
    end
    local p = { name = name, value = value, gradients = { zeros_like(value) }, shadow = compute ~= value and compute or nil }
    tape.leaf(compute, p.gradients[1])
    params[#params + 1], by_name[name] = p, p
    return compute
  end
  for i, stage in ipairs(model.stages) do
    if not wanted or wanted[i] then
      stage.trained = true
      for _, t in ipairs(stage.tensors) do
        if t.role == "relative" then error(("'%s' gets no gradient: train this model with an adapter"):format(t.name), 0) end
        local layer = stage.weights[t.role]
        local owner = stage.weights[t.role:match "^(.*)_bias$" or ""]
        if type(layer) == "table" then
          layer.weight = register(t.name, layer.weight)
        elseif layer and not t.state then -- what the forward pass itself moves is no parameter
          stage.weights[t.role] = register(t.name, layer)
        elseif type(owner) == "table" and owner.bias then
          owner.bias = register(t.name, owner.bias)
        end
      end
      for role, name in pairs(stage.shares or {}) do
        -- a shared weight keeps a gradient buffer of its own, folded in at the update: sums stay in one order at any micro-batch
        local p = by_name[name]
        if p then
          local base = p.shadow or p.value
          stage.weights[role] = tensors.keep(base:view(base:shape()))
          p.gradients[#p.gradients + 1] = tape.leaf(stage.weights[role], zeros_like(p.value))
        end
      end
    end
  end
  return params
end

return full
