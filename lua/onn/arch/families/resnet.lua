-- torchvision's ResNet, ResNeXt and Wide ResNet (arXiv 1512.03385, 1611.05431, 1605.07146).
local deep = { { 3, 4, 6, 3 }, { 3, 4, 23, 3 }, { 3, 8, 36, 3 } }
local kinds = {
  resnet18 = { depths = { 2, 2, 2, 2 } }, resnet34 = { depths = deep[1] },
  resnet50 = { depths = deep[1], bottleneck = true }, resnet101 = { depths = deep[2], bottleneck = true },
  resnet152 = { depths = deep[3], bottleneck = true },
  resnext50_32x4d = { depths = deep[1], bottleneck = true, groups = 32, width_per_group = 4 },
  resnext101_32x8d = { depths = deep[2], bottleneck = true, groups = 32, width_per_group = 8 },
  resnext101_64x4d = { depths = deep[2], bottleneck = true, groups = 64, width_per_group = 4 },
  wide_resnet50_2 = { depths = deep[1], bottleneck = true, width_per_group = 128 },
  wide_resnet101_2 = { depths = deep[2], bottleneck = true, width_per_group = 128 },
}
local names = {}
for name in pairs(kinds) do names[#names + 1] = name end

local function basic(b, name, width, stride)
  b:conv(name .. ".conv1", width, 3, { stride = stride })
  b:norm(name .. ".bn1")
  b:activation "relu"
  b:conv(name .. ".conv2", width, 3)
  b:norm(name .. ".bn2")
end

local function bottleneck(b, name, width, stride, kind)
  local inner = width * (kind.width_per_group or 64) / 64 * (kind.groups or 1)
  b:conv(name .. ".conv1", inner, 1)
  b:norm(name .. ".bn1")
  b:activation "relu"
  b:conv(name .. ".conv2", inner, 3, { stride = stride, groups = kind.groups })
  b:norm(name .. ".bn2")
  b:activation "relu"
  b:conv(name .. ".conv3", width * 4, 1)
  b:norm(name .. ".bn3")
end

return {
  name = "resnet", net = "convolutional", model_types = names, first = "conv1",
  stages = function(b, config, name)
    local kind, width = kinds[name], config.width or 64
    b:block("stem", function()
      b:conv("conv1", width, 7, { stride = 2 })
      b:norm "bn1"
      b:activation "relu"
      b:max_pool(3, 2, 1)
    end, "stem")
    for layer, depth in ipairs(kind.depths) do
      for i = 0, depth - 1 do
        local prefix, stride = ("layer%d.%d"):format(layer, i), i == 0 and layer > 1 and 2 or 1
        local wide = width * 2 ^ (layer - 1)
        local out = kind.bottleneck and 4 * wide or wide
        local changes = stride > 1 or b:has(prefix .. ".downsample.0.weight", out ~= b.channels)
        b:block(prefix, function()
          b:residual(function() (kind.bottleneck and bottleneck or basic)(b, prefix, wide, stride, kind) end, changes and function()
            b:conv(prefix .. ".downsample.0", out, 1, { stride = stride })
            b:norm(prefix .. ".downsample.1")
          end or nil, "relu")
        end)
      end
    end
    b:block("fc", function()
      b:average()
      b:linear("fc", b.classes)
    end, "classifier")
  end,
}
