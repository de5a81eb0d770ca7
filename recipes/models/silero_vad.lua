-- Silero's voice activity detector at 16 kHz (github.com/snakers4/silero-vad): a short-time Fourier transform as a convolution, four
-- convolutions, an LSTM over the chunks. x (sounds, chunks, 576): 512 samples, the 64 before them first (zeros at the start). The output
-- (sounds, chunks) is the probability of speech. Its weights lie beside a copy of this file: silero_vad.lua, silero_vad.safetensors.
local nn = require "onn.nn"
local ops = require "onn.ops"
local tensor = require "onn.tensor"

-- Chunks become rows; the last 64 samples are reflected at the end.
local function frames(x)
  local count, order = x:size(1) * x:size(2), {}
  for i = 0, 639 do order[i + 1] = i < 576 and i or 1150 - i end
  local columns = ops.view(x, { count, 576 }):transpose(1, 2):contiguous()
  return ops.view(ops.gather(columns, tensor.from_table(order, "i32")):transpose(1, 2):contiguous(), { count, 1, 640 })
end

-- (rows, 258, frames): real and imaginary parts -> (rows, 129, frames)
local function magnitude(x)
  local re, im = x:narrow(2, 1, 129), x:narrow(2, 130, 129)
  return (re:square() + im:square()):sqrt()
end

local function chunks(x) return ops.view(x, { nn.rows(), x:size(1) / nn.rows(), 128 }) end

return nn.model { name = "silero_vad", input = { "any", 576 },
  nn.apply(frames), nn.conv1d(1, 258, 256, { stride = 128, bias = false, name = "stft_conv" }), nn.apply(magnitude),
  nn.conv1d(129, 128, 3, { padding = 1, name = "conv1" }), nn.relu(),
  nn.conv1d(128, 64, 3, { padding = 1, stride = 2, name = "conv2" }), nn.relu(),
  nn.conv1d(64, 64, 3, { padding = 1, stride = 2, name = "conv3" }), nn.relu(),
  nn.conv1d(64, 128, 3, { padding = 1, name = "conv4" }), nn.relu(), nn.apply(chunks),
  nn.lstm(128, 128, { name = "lstm_cell", names = { "weight_ih", "weight_hh", "bias_ih", "bias_hh" } }), nn.relu(),
  nn.apply(function(x) return x:transpose(2, 3):contiguous() end), nn.conv1d(128, 1, 1, { name = "final_conv" }), nn.sigmoid(),
  nn.apply(function(x) return ops.view(x, { x:size(1), x:size(3) }) end) }
