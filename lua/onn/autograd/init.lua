-- onn.autograd: gradients of Lua functions of tensors.
--   local loss, grads = autograd.value_and_grad(function(p) return (x:matmul(p.w) - y):square():sum "all" end, { w = w })
local core = require "onn.core.tensor"
local tape = require "onn.autograd.tape"
require "onn.tensor"

local autograd = { tape = tape, constant = tape.constant }

-- Runs f(params) once and walks back. params: {name = f32 tensor}; f returns one f32 element.
-- Returns that tensor and {name = gradient of the parameter's shape}.
function autograd.value_and_grad(f, params)
  local grads, before = {}, {}
  for name, t in pairs(params) do
    before[name] = tape.gradient(t)
    grads[name] = core.zeros("f32", t:shape())
    tape.leaf(t, grads[name])
  end
  local t = tape.new()
  local ok, loss = pcall(t.run, t, f, params)
  if ok then
    if not core.is_tensor(loss) or loss:numel() ~= 1 then
      ok, loss = false, "value_and_grad: the function must return a tensor of one element"
    else
      ok, before.failure = pcall(t.backward, t, { [loss] = core.new(loss:dtype(), loss:shape()):fill(1) })
    end
  end
  for name, p in pairs(params) do
    tape.forget(p)
    if before[name] then tape.leaf(p, before[name]) end
  end
  if not ok then error(before.failure or loss, 0) end
  return loss, grads
end

return autograd
