-- torchvision's EfficientNet and EfficientNet v2 (arXiv 1905.11946, 2104.00298).
-- expansion, kernel, stride, into, out, blocks; fused: the expansion is the spatial convolution
local base = { { 1, 3, 1, 32, 16, 1 }, { 6, 3, 2, 16, 24, 2 }, { 6, 5, 2, 24, 40, 2 }, { 6, 3, 2, 40, 80, 3 }, { 6, 5, 1, 80, 112, 3 },
  { 6, 5, 2, 112, 192, 4 }, { 6, 3, 1, 192, 320, 1 } }
local second = {
  efficientnet_v2_s = { { 1, 3, 1, 24, 24, 2, true }, { 4, 3, 2, 24, 48, 4, true }, { 4, 3, 2, 48, 64, 4, true }, { 4, 3, 2, 64, 128, 6 },
    { 6, 3, 1, 128, 160, 9 }, { 6, 3, 2, 160, 256, 15 } },
  efficientnet_v2_m = { { 1, 3, 1, 24, 24, 3, true }, { 4, 3, 2, 24, 48, 5, true }, { 4, 3, 2, 48, 80, 5, true }, { 4, 3, 2, 80, 160, 7 },
    { 6, 3, 1, 160, 176, 14 }, { 6, 3, 2, 176, 304, 18 }, { 6, 3, 1, 304, 512, 5 } },
  efficientnet_v2_l = { { 1, 3, 1, 32, 32, 4, true }, { 4, 3, 2, 32, 64, 7, true }, { 4, 3, 2, 64, 96, 7, true }, { 4, 3, 2, 96, 192, 10 },
    { 6, 3, 1, 192, 224, 19 }, { 6, 3, 2, 224, 384, 25 }, { 6, 3, 1, 384, 640, 7 } },
}
local scales = { b0 = { 1, 1 }, b1 = { 1, 1.1 }, b2 = { 1.1, 1.2 }, b3 = { 1.2, 1.4 }, b4 = { 1.4, 1.8 }, b5 = { 1.6, 2.2 },
  b6 = { 1.8, 2.6 }, b7 = { 2, 3.1 } }
local exact = { b5 = true, b6 = true, b7 = true } -- whose norms have eps 1e-3, as v2's

local names = {}
for name in pairs(scales) do names[#names + 1] = "efficientnet_" .. name end
for name in pairs(second) do names[#names + 1] = name end

local function rounded(n)
  local near = math.max(8, math.floor((n + 4) / 8) * 8)
  return near < 0.9 * n and near + 8 or near
end

-- The groups of a net, its sizes made wider and deeper.
local function groups_of(name)
  if second[name] then return second[name], 1280 end
  local wide, deep = unpack(scales[name:match "b%d$"])
  local list = {}
  for i, g in ipairs(base) do
    list[i] = { g[1], g[2], g[3], rounded(g[4] * wide), rounded(g[5] * wide), math.ceil(g[6] * deep - 1e-9) }
  end
  return list
end

local function inverted(b, name, expansion, kernel, stride, out, fused)
  local at, into = 0, b.channels
  local function unit(...)
    b:conv(("%s.block.%d.0"):format(name, at), ...)
    b:norm(("%s.block.%d.1"):format(name, at))
    at = at + 1
  end
  b:residual_where(stride == 1, function()
    if fused then
      unit(expansion == 1 and out or into * expansion, kernel, { stride = stride })
      b:activation "silu"
      if expansion == 1 then return end
    else
      if expansion ~= 1 then
        unit(into * expansion, 1)
        b:activation "silu"
      end
      unit(b.channels, kernel, { stride = stride, depthwise = true })
      b:activation "silu"
      b:squeeze(("%s.block.%d"):format(name, at), math.max(1, math.floor(into / 4)), "silu", "sigmoid")
      at = at + 1
    end
    unit(out, 1)
  end)
end

return {
  name = "efficientnet", net = "convolutional", model_types = names, first = "features.0.0",
  stages = function(b, _, name)
    if second[name] then b.eps = 1e-3 elseif exact[name:match "b%d$"] then b.eps, b.momentum = 1e-3, 0.01 end
    local groups, last = groups_of(name)
    local function whole(at, ...)
      b:conv(("features.%d.0"):format(at), ...)
      b:norm(("features.%d.1"):format(at))
      b:activation "silu"
    end
    b:block("features.0", function() whole(0, groups[1][4], 3, { stride = 2 }) end)
    for g, group in ipairs(groups) do
      local expansion, kernel, stride, _, out, count, fused = unpack(group, 1, 7)
      for i = 0, count - 1 do
        local prefix = ("features.%d.%d"):format(g, i)
        b:block(prefix, function() inverted(b, prefix, expansion, kernel, i == 0 and stride or 1, out, fused) end)
      end
    end
    local at = #groups + 1
    b:block("features." .. at, function() whole(at, last or 4 * b.channels, 1) end)
    b:block("classifier.1", function()
      b:average()
      b:dropout("classifier.1", b.drop)
      b:linear("classifier.1", b.classes)
    end, "classifier")
  end,
}
