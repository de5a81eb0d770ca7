-- torchvision's VGG, with and without batch norm (arXiv 1409.1556). `dropout` of the config acts between the last layers in training.
local kinds = { -- convolutions between the poolings
  vgg11 = { 1, 1, 2, 2, 2 }, vgg13 = { 2, 2, 2, 2, 2 }, vgg16 = { 2, 2, 3, 3, 3 }, vgg19 = { 2, 2, 4, 4, 4 },
}
local names = {}
for name in pairs(kinds) do
  names[#names + 1] = name
  names[#names + 1] = name .. "_bn"
end

return {
  name = "vgg", net = "convolutional", model_types = names, first = "features.0",
  stages = function(b, config, name)
    local norms, at = name:find "_bn$", 0
    for group, count in ipairs(kinds[name:match "^vgg%d+"]) do
      for i = 1, count do
        local conv = "features." .. at
        b:block(conv, function()
          b:conv(conv, math.min((config.width or 64) * 2 ^ (group - 1), (config.width or 64) * 8), 3, { bias = true })
          if norms then b:norm("features." .. at + 1) end
          b:activation "relu"
          if i == count then b:max_pool(2, 2) end
        end)
        at = at + (norms and 3 or 2)
      end
      at = at + 1
    end
    for i, place in ipairs { 0, 3 } do
      local linear = "classifier." .. place
      b:block(linear, function()
        if i == 1 then b:grid(7) end
        b:linear(linear, (config.width or 64) * 64)
        b:activation "relu"
        b:dropout(linear, b.drop)
      end)
    end
    b:block("classifier.6", function() b:linear("classifier.6", b.classes) end, "classifier")
  end,
}
