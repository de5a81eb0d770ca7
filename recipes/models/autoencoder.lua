-- An autoencoder: pictures of one channel, 8 x 8, through 6 numbers and back. y is x itself, in the same shape.
--   onn train recipes/models/autoencoder.lua pictures.safetensors --out coder --epochs 30 --lr 3e-3
local nn = require "onn.nn"

return nn.model { input = { 1, 8, 8 }, loss = "square",
  nn.conv2d(1, 8, 3, { stride = 2, padding = 1, name = "encoder.0" }), nn.relu(), nn.flatten(),
  nn.linear(8 * 4 * 4, 6, { name = "encoder.1" }),
  nn.linear(6, 64, { name = "decoder.0" }), nn.relu(),
  nn.linear(64, 64, { name = "decoder.1" }), nn.view(1, 8, 8) }
