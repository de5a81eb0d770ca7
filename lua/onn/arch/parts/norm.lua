-- A block's norms: RMS or mean and variance, with a bias or without, with weights that count from 1 where the family says so.
local ops = require "onn.ops"

local norm = {}

-- Adds the tensors of the norm `role`, called `name` in the store, over `size` elements.
function norm.tensors(c, add, role, name, size)
  if c.norm_plain then return end
  add.vector(role, name .. ".weight", { size })
  if c.norm == "layer" and c.norm_bias ~= false then add.vector(role .. "_bias", name .. ".bias", { size }) end
end

-- x (..., size) by the norm `role` of a stage, in `dtype` (x's if absent); eps: the family's if absent.
function norm.apply(c, stage, role, x, dtype, eps)
  local w, b = stage.weights[role], stage.weights[role .. "_bias"]
  if c.norm_from_one and w then w = ops.affine(w, 1, 1) end
  if c.norm == "layer" then return ops.layer_norm(x, w, b, eps or c.eps, dtype) end
  return ops.rms_norm(x, w, eps or c.eps, dtype)
end

return norm
