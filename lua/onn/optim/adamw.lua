-- AdamW with explicit state (arXiv 1711.05101). params: list of {name, value, gradients, shadow}; value f32, gradients a list of
-- f32 buffers added up in order, shadow the bf16 copy that the arithmetic reads, or nil.
local core = require "onn.core.ops"
local tensors = require "onn.core.tensor"

local adamw = { defaults = { betas = { 0.9, 0.999 }, eps = 1e-8, weight_decay = 0 } }

function adamw.state() return { step = 0, m = {}, v = {} } end

-- One update; lr is this step's rate, scale multiplies the gradients (clipping). Gradients are left as they are.
function adamw.step(params, state, opt, lr, scale)
  local betas = opt.betas or adamw.defaults.betas
  state.step = state.step + 1
  for _, p in ipairs(params) do
    if not state.m[p.name] then
      state.m[p.name] = tensors.keep(tensors.zeros("f32", p.value:shape()))
      state.v[p.name] = tensors.keep(tensors.zeros("f32", p.value:shape()))
    end
    core.adamw(p.value, state.m[p.name], state.v[p.name], p.shadow, p.gradients[1], lr, betas[1], betas[2],
      opt.eps or adamw.defaults.eps, opt.weight_decay or 0, scale or 1, state.step)
  end
end

return adamw
