-- What is trained whole beside an adapter (PEFT's modules_to_save): the classifier on top of an encoder. It is small, stays in memory and
-- in f32.
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"

local saved = {}

-- The tensors of a model that are trained so: {name, shape, stage, role}.
function saved.tensors(model)
  local list = {}
  for _, stage in ipairs(model.stages) do
    for _, t in ipairs(stage.tensors) do
      if t.saved then list[#list + 1] = { name = t.name, shape = t.shape, stage = stage, role = t.role } end
    end
  end
  return list
end

-- The value of one of them, of a loaded model.
function saved.value(t)
  local w = t.stage.weights[t.role]
  if tensors.is_tensor(w) then return w end
  if w then return w.weight end
  return t.stage.weights[t.role:match "^(.*)_bias$"].bias
end

-- Their parameters for an optimizer (see onn.nn.lora); none where the model has no such tensors.
function saved.parameters(model)
  local params = {}
  for _, t in ipairs(saved.tensors(model)) do
    local value = saved.value(t)
    local gradient = tape.leaf(value, tape.gradient(value) or tensors.keep(tensors.zeros("f32", t.shape)))
    params[#params + 1] = { name = t.name, value = value, gradients = { gradient } }
    t.stage.trained = true
  end
  return params
end

return saved
