-- A residual network for tables: rows of 8 numbers, 3 classes. Change the sizes to your data's.
--   onn train recipes/models/residual_mlp.lua table.safetensors --out mlp --epochs 20 --lr 3e-3     (x (rows, 8), y (rows): 0 to 2)
--   onn evaluate mlp/residual_mlp.lua other.safetensors
local nn = require "onn.nn"

local function block(width)
  return nn.residual { nn.layer_norm(width), nn.linear(width, 2 * width), nn.gelu(), nn.linear(2 * width, width) }
end

return nn.model { input = { 8 }, loss = "classes", nn.linear(8, 32), block(32), block(32), nn.layer_norm(32), nn.linear(32, 3) }
