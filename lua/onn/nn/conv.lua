-- A convolution with a stored weight (out, in / groups, kh, kw), its bias, and the adapter that may sit on it. The adapter is PEFT's: A is a
-- convolution from all of the input with the layer's window, stride and padding, B one of a single pixel in the layer's groups.
local ops = require "onn.ops"

-- The adapter's input, with dropout while training; ctx.rows number the images.
local function input(adapter, x, ctx)
  if adapter.dropout == 0 or not ctx.training then return x end
  local site, shape = ("%s/dropout/%d"):format(adapter.name, ctx.epoch or 0), x:shape()
  local flat = ops.view(x, { shape[1], shape[2] * shape[3] * shape[4] })
  return ops.view(ops.dropout(flat, adapter.dropout, { seed = ctx.seed, site = site, counter = 0 }, ctx.rows), shape)
end

-- layer {weight, bias, adapter}; x (n, c, h, w) f32; options {stride, padding, dilation, groups}.
return function(layer, x, ctx, options)
  local weight = layer.weight
  local y = ops.conv(x, weight:dtype() == "f32" and weight or weight:to "f32", layer.bias, options)
  local adapter = layer.adapter
  if not adapter then return y end
  local h = ops.conv(input(adapter, x, ctx), adapter.a, nil, { stride = options.stride, padding = options.padding, by_image = true })
  return ops.add(y, ops.affine(ops.conv(h, adapter.b, nil, { groups = options.groups, by_image = true }), adapter.scale, 0))
end
