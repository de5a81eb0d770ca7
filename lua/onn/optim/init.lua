-- onn.optim: optimizers and what they share. An optimizer is one file: state(), step(params, state, opt, lr, scale).
local core = require "onn.core.ops"

local optim = { adamw = require "onn.optim.adamw", sgd = require "onn.optim.sgd" }

-- Folds each parameter's further gradient buffers into its first, in order.
function optim.fold(params)
  for _, p in ipairs(params) do
    for k = 2, #p.gradients do core.binary(p.gradients[1], p.gradients[k], "add", p.gradients[1]) end
  end
end

-- Global norm of all gradients, and how many of their elements are not finite.
function optim.norm(params)
  local sum, bad = 0, 0
  for _, p in ipairs(params) do
    local s, b = core.total(p.gradients[1], true)
    sum, bad = sum + s, bad + b
  end
  return math.sqrt(sum), bad
end

function optim.clear(params)
  for _, p in ipairs(params) do for _, g in ipairs(p.gradients) do g:fill(0) end end
end

return optim
