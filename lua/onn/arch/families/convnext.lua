-- torchvision's ConvNeXt (arXiv 2201.03545).
local kinds = { convnext_tiny = { { 3, 3, 9, 3 }, 96 }, convnext_small = { { 3, 3, 27, 3 }, 96 }, convnext_base = { { 3, 3, 27, 3 }, 128 },
  convnext_large = { { 3, 3, 27, 3 }, 192 } }
local EPS = 1e-6
local names = {}
for name in pairs(kinds) do names[#names + 1] = name end

return {
  name = "convnext", net = "convolutional", model_types = names, first = "features.0.0",
  stages = function(b, _, name)
    local depths, width = unpack(kinds[name])
    local function norm(at) b:pixels(function() b:layer_norm(at, EPS) end) end
    b:block("features.0", function()
      b:conv("features.0.0", width, 4, { stride = 4, padding = 0, bias = true })
      norm "features.0.1"
    end)
    for stage, depth in ipairs(depths) do
      for i = 0, depth - 1 do
        local prefix = ("features.%d.%d"):format(2 * stage - 1, i)
        b:block(prefix, function()
          b:residual(function()
            local channels = b.channels
            b:conv(prefix .. ".block.0", channels, 7, { depthwise = true, bias = true })
            b:pixels(function()
              b:layer_norm(prefix .. ".block.2", EPS)
              b:linear(prefix .. ".block.3", 4 * channels)
              b:activation "gelu"
              b:linear(prefix .. ".block.5", channels)
            end)
            b:scale(prefix .. ".layer_scale")
          end)
        end)
      end
      local prefix = "features." .. 2 * stage
      if stage < #depths then
        b:block(prefix, function()
          norm(prefix .. ".0")
          b:conv(prefix .. ".1", width * 2 ^ stage, 2, { stride = 2, padding = 0, bias = true })
        end)
      end
    end
    b:block("classifier.2", function()
      b:average()
      b:layer_norm("classifier.0", EPS)
      b:linear("classifier.2", b.classes)
    end, "classifier")
  end,
}
