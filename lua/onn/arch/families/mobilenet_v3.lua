-- torchvision's MobileNet v3, large and small (arXiv 1905.02244).
-- into, kernel, expanded, out, squeeze, activation, stride
local R, H = "relu", "hardswish"
local kinds = {
  mobilenet_v3_large = { last = 1280, { 16, 3, 16, 16, false, R, 1 }, { 16, 3, 64, 24, false, R, 2 }, { 24, 3, 72, 24, false, R, 1 },
    { 24, 5, 72, 40, true, R, 2 }, { 40, 5, 120, 40, true, R, 1 }, { 40, 5, 120, 40, true, R, 1 }, { 40, 3, 240, 80, false, H, 2 },
    { 80, 3, 200, 80, false, H, 1 }, { 80, 3, 184, 80, false, H, 1 }, { 80, 3, 184, 80, false, H, 1 }, { 80, 3, 480, 112, true, H, 1 },
    { 112, 3, 672, 112, true, H, 1 }, { 112, 5, 672, 160, true, H, 2 }, { 160, 5, 960, 160, true, H, 1 }, { 160, 5, 960, 160, true, H, 1 } },
  mobilenet_v3_small = { last = 1024, { 16, 3, 16, 16, true, R, 2 }, { 16, 3, 72, 24, false, R, 2 }, { 24, 3, 88, 24, false, R, 1 },
    { 24, 5, 96, 40, true, H, 2 }, { 40, 5, 240, 40, true, H, 1 }, { 40, 5, 240, 40, true, H, 1 }, { 40, 5, 120, 48, true, H, 1 },
    { 48, 5, 144, 48, true, H, 1 }, { 48, 5, 288, 96, true, H, 2 }, { 96, 5, 576, 96, true, H, 1 }, { 96, 5, 576, 96, true, H, 1 } },
}

-- The nearest multiple of 8 that is not less than 90 % of n.
local function rounded(n)
  local near = math.max(8, math.floor((n + 4) / 8) * 8)
  return near < 0.9 * n and near + 8 or near
end

local function inverted(b, name, kernel, wide, out, squeeze, activation, stride, expand)
  local at = 0
  local function unit(...)
    b:conv(("%s.block.%d.0"):format(name, at), ...)
    b:norm(("%s.block.%d.1"):format(name, at))
    at = at + 1
  end
  b:residual_where(stride == 1, function()
    if expand then
      unit(wide, 1)
      b:activation(activation)
    end
    unit(b.channels, kernel, { stride = stride, depthwise = true })
    b:activation(activation)
    if squeeze then
      b:squeeze(("%s.block.%d"):format(name, at), rounded(math.floor(b.channels / 4)), "relu", "hardsigmoid")
      at = at + 1
    end
    unit(out, 1)
  end)
end

return {
  name = "mobilenet_v3", net = "convolutional", model_types = { "mobilenet_v3_large", "mobilenet_v3_small" }, first = "features.0.0",
  stages = function(b, _, name)
    b.eps, b.momentum = 1e-3, 0.01
    local kind = kinds[name]
    local function whole(at, ...)
      b:conv(("features.%d.0"):format(at), ...)
      b:norm(("features.%d.1"):format(at))
      b:activation "hardswish"
    end
    b:block("features.0", function() whole(0, 16, 3, { stride = 2 }) end)
    for i, one in ipairs(kind) do
      local into, kernel, wide, out, squeeze, activation, stride = unpack(one)
      b:block("features." .. i, function() inverted(b, "features." .. i, kernel, wide, out, squeeze, activation, stride, wide ~= into) end)
    end
    local at = #kind + 1
    b:block("features." .. at, function() whole(at, b.channels * 6, 1) end)
    b:block("classifier.0", function()
      b:average()
      b:linear("classifier.0", kind.last)
      b:activation "hardswish"
      b:dropout("classifier.0", b.drop)
    end)
    b:block("classifier.3", function() b:linear("classifier.3", b.classes) end, "classifier")
  end,
}
