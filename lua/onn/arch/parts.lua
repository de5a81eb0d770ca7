-- What nets have in common: making a stage, its norms, its activations.
local ops = require "onn.ops"

local parts = {}

-- Activations by what configs call them; a value is the name of an operation.
parts.activations = { gelu = "gelu", gelu_new = "gelu_tanh", gelu_fast = "gelu_tanh", gelu_pytorch_tanh = "gelu_tanh", relu = "relu",
  silu = "silu", swish = "silu", tanh = "tanh" }

-- Makes a stage and what adds to it: vector(name, role, size), matrix(...), norm(name, role), product(name, role, out, into).
function parts.stage(name, kind, has, index)
  local stage = { name = name, kind = kind, index = index, layers = {}, tensors = {} }
  local add = {}
  function add.tensor(full, role, shape, more)
    local t = { name = full, role = role, shape = shape, vector = #shape == 1 }
    for k, v in pairs(more or {}) do t[k] = v end
    stage.tensors[#stage.tensors + 1] = t
  end
  -- Old checkpoints call a norm's weight and bias gamma and beta.
  function add.norm(full, role, size, biased)
    local old = has and not has(full .. ".weight") and has(full .. ".gamma")
    add.tensor(full .. (old and ".gamma" or ".weight"), role, { size })
    if biased ~= false then add.tensor(full .. (old and ".beta" or ".bias"), role .. "_bias", { size }) end
  end
  function add.product(full, role, out, into, biased, more)
    stage.layers[#stage.layers + 1] = { role = role, name = full, out = out, into = into }
    add.tensor(full .. ".weight", role, { out, into }, more)
    if biased ~= false then add.tensor(full .. ".bias", role .. "_bias", { out }, more) end
  end
  return stage, add
end

-- Layer norm with the stage's weights `role`; x f32 (rows, width).
function parts.norm(c, stage, x, role) return ops.layer_norm(x, stage.weights[role], stage.weights[role .. "_bias"], c.eps) end

-- x as products want it.
function parts.cast(x, ctx) return ctx.dtype ~= "f32" and ops.to(x, ctx.dtype) or x end

return parts
