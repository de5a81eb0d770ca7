-- Stochastic gradient descent with momentum, as torch.optim.SGD has it: m = momentum m + g + weight_decay p; p = p - lr m. Momentum 0 keeps no
-- state. params: as onn.optim.adamw takes them.
local core = require "onn.core.ops"
local tensors = require "onn.core.tensor"

local sgd = { defaults = { momentum = 0, weight_decay = 0 } }

function sgd.state() return { step = 0, m = {}, v = {} } end

-- One update; lr is this step's rate, scale multiplies the gradients (clipping). Gradients are left as they are.
function sgd.step(params, state, opt, lr, scale)
  local momentum, decay = opt.momentum or 0, opt.weight_decay or 0
  state.step = state.step + 1
  for _, p in ipairs(params) do
    local g = core.affine(p.gradients[1], scale or 1, 0)
    if decay ~= 0 then core.binary(g, core.affine(p.value, decay, 0), "add", g) end
    if momentum ~= 0 then
      local m = state.m[p.name]
      if m then
        m:copy(core.binary(core.affine(m, momentum, 0), g, "add"))
      else
        state.m[p.name] = tensors.keep(g)
      end
      g = state.m[p.name]
    end
    core.binary(p.value, core.affine(g, -lr, 0), "add", p.value)
    if p.shadow then p.shadow:copy(p.value) end
  end
end

return sgd
