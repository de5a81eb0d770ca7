-- torchvision's DenseNet (arXiv 1608.06993).
local kinds = { -- growth, layers of each block, channels of the first convolution
  densenet121 = { 32, { 6, 12, 24, 16 }, 64 }, densenet161 = { 48, { 6, 12, 36, 24 }, 96 }, densenet169 = { 32, { 6, 12, 32, 32 }, 64 },
  densenet201 = { 32, { 6, 12, 48, 32 }, 64 },
}
local names = {}
for name in pairs(kinds) do names[#names + 1] = name end

return {
  name = "densenet", net = "convolutional", model_types = names, first = "features.conv0",
  stages = function(b, _, name)
    local growth, depths, width = unpack(kinds[name])
    local function normed(norm, conv, ...)
      b:norm(norm)
      b:activation "relu"
      b:conv(conv, ...)
    end
    b:block("features.conv0", function()
      b:conv("features.conv0", width, 7, { stride = 2 })
      b:norm "features.norm0"
      b:activation "relu"
      b:max_pool(3, 2, 1)
    end, "stem")
    for block, depth in ipairs(depths) do
      for layer = 1, depth do
        local prefix = ("features.denseblock%d.denselayer%d"):format(block, layer)
        b:block(prefix, function()
          b:concat(function()
            normed(prefix .. ".norm1", prefix .. ".conv1", 4 * growth, 1)
            normed(prefix .. ".norm2", prefix .. ".conv2", growth, 3)
          end)
        end)
      end
      local prefix = "features.transition" .. block
      if block < #depths then
        b:block(prefix, function()
          normed(prefix .. ".norm", prefix .. ".conv", math.floor(b.channels / 2), 1)
          b:average_pool(2)
        end)
      end
    end
    b:block("classifier", function()
      b:norm "features.norm5"
      b:activation "relu"
      b:average()
      b:linear("classifier", b.classes)
    end, "classifier")
  end,
}
