-- Training all of a model's own weights: f32 masters that the optimizer moves, and bf16 copies where the arithmetic is bf16.
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"

local full = {}

local no_gradient = { relative = true, sinks = true } -- attention gives none

local function zeros_like(t) return tensors.keep(tensors.zeros("f32", t:shape())) end

-- Registers every weight of the loaded model (of the stages in `wanted`, {[position]=true}, or all) for training.
-- Returns parameters for an optimizer: {name, value, gradients, shadow, transposed (stored (in, out): see full.stored)}.
function full.parameters(model, wanted)
  local params, by_name = {}, {}
  local function register(t, used)
    local name = t.name
    if t.transposed then -- trained as it is used; full.stored() turns it back
      local view = used
      used = tensors.keep(view:contiguous())
      view:free()
    end
    local value, compute = used, used
    if used:dtype() ~= "f32" then
      value = tensors.keep(used:to "f32")
      if model.dtype ~= "bf16" then
        used:free()
        compute = value
      end
    end
    local p = { name = name, value = value, gradients = { zeros_like(value) }, shadow = compute ~= value and compute or nil,
      transposed = t.transposed }
    tape.leaf(compute, p.gradients[1])
    params[#params + 1], by_name[name] = p, p
    return compute
  end
  for i, stage in ipairs(model.stages) do
    if not wanted or wanted[i] then
      stage.trained = true
      for _, t in ipairs(stage.tensors) do
        if no_gradient[t.role] then error(("'%s' gets no gradient: train this model with an adapter"):format(t.name), 0) end
        local layer = stage.weights[t.role]
        local owner = stage.weights[t.role:match "^(.*)_bias$" or ""]
        if type(layer) == "table" then
          layer.weight = register(t, layer.weight)
        elseif layer and not t.state and not t.buffer then -- what the forward pass itself moves is no parameter
          stage.weights[t.role] = register(t, layer)
        elseif type(owner) == "table" and owner.bias then
          owner.bias = register(t, owner.bias)
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

-- A parameter's value, or one of its gradients, as the store has it.
function full.stored(p, tensor) return p.transposed and tensor:transpose(1, 2):contiguous() or tensor end

return full
