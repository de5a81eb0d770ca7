-- torchvision's MobileNet v2 (arXiv 1801.04381).
-- expansion, channels, blocks, stride of the first
local groups = { { 1, 16, 1, 1 }, { 6, 24, 2, 2 }, { 6, 32, 3, 2 }, { 6, 64, 4, 2 }, { 6, 96, 3, 1 }, { 6, 160, 3, 2 }, { 6, 320, 1, 1 } }

local function inverted(b, name, expansion, out, stride)
  local at = 0
  local function unit(...)
    b:conv(("%s.conv.%d.0"):format(name, at), ...)
    b:norm(("%s.conv.%d.1"):format(name, at))
    b:activation "relu6"
    at = at + 1
  end
  b:residual_where(stride == 1, function()
    if expansion ~= 1 then unit(b.channels * expansion, 1) end
    unit(b.channels, 3, { stride = stride, depthwise = true })
    b:conv(("%s.conv.%d"):format(name, at), out, 1)
    b:norm(("%s.conv.%d"):format(name, at + 1))
  end)
end

return {
  name = "mobilenet_v2", net = "convolutional", model_types = { "mobilenet_v2" }, first = "features.0.0",
  stages = function(b)
    local function whole(name, ...)
      b:conv(name .. ".0", ...)
      b:norm(name .. ".1")
      b:activation "relu6"
    end
    b:block("features.0", function() whole("features.0", 32, 3, { stride = 2 }) end)
    local at = 1
    for _, group in ipairs(groups) do
      for i = 1, group[3] do
        local name = "features." .. at
        b:block(name, function() inverted(b, name, group[1], group[2], i == 1 and group[4] or 1) end)
        at = at + 1
      end
    end
    b:block("features." .. at, function() whole("features." .. at, 1280, 1) end)
    b:block("classifier.1", function()
      b:average()
      b:dropout("classifier.1", b.drop)
      b:linear("classifier.1", b.classes)
    end, "classifier")
  end,
}
