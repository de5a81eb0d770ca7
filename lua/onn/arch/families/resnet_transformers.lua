-- Hugging Face's ResNet (transformers' ResNetForImageClassification; arXiv 1512.03385).
local values = require "onn.arch.config"

local activations = { relu = "relu", silu = "silu", gelu = "gelu" }

local function unit(b, name, out, kernel, stride, activation)
  b:conv(name .. ".convolution", out, kernel, { stride = stride })
  b:norm(name .. ".normalization")
  if activation then b:activation(activation) end
end

return {
  name = "resnet (transformers)", net = "convolutional", model_types = { "resnet" }, first = "resnet.embedder.embedder.convolution",
  only = { stage_names = true, out_features = true, out_indices = true }, -- of a net that gives its inner images
  check = function(config, wrong)
    local size = values.integer(1, 2 ^ 20)
    for _, key in ipairs { "hidden_sizes", "depths" } do
      local list = config[key]
      if list == nil or not values.check(key, list, values.list, wrong) then
        if list == nil then wrong[#wrong + 1] = ("'%s' is missing"):format(key) end
      else
        for i, value in ipairs(list) do values.check(("%s[%d]"):format(key, i), value, size, wrong) end
      end
    end
    if #wrong == 0 and #config.depths ~= #config.hidden_sizes then wrong[#wrong + 1] = "'depths' and 'hidden_sizes' differ in length" end
    values.check("embedding_size", config.embedding_size or 64, size, wrong)
    local kind, act = config.layer_type or "bottleneck", config.hidden_act or "relu"
    if kind ~= "bottleneck" and kind ~= "basic" then wrong[#wrong + 1] = ("'layer_type' %s is not known"):format(values.shown(kind)) end
    if not activations[act] then wrong[#wrong + 1] = ("'hidden_act' %s is not known"):format(values.shown(act)) end
  end,
  stages = function(b, config)
    local act, basic = activations[config.hidden_act or "relu"], config.layer_type == "basic"
    b:block("resnet.embedder", function()
      unit(b, "resnet.embedder.embedder", config.embedding_size or 64, 7, 2, act)
      b:max_pool(3, 2, 1)
    end, "stem")
    for stage, depth in ipairs(config.depths) do
      for i = 0, depth - 1 do
        local prefix, out = ("resnet.encoder.stages.%d.layers.%d"):format(stage - 1, i), config.hidden_sizes[stage]
        local stride = i == 0 and (stage > 1 or config.downsample_in_first_stage) and 2 or 1
        local function layer(k, ...) unit(b, ("%s.layer.%d"):format(prefix, k), ...) end
        b:block(prefix, function()
          b:residual(function()
            if basic then
              layer(0, out, 3, stride, act)
              layer(1, out, 3, 1)
            else
              local first = config.downsample_in_bottleneck and stride or 1
              layer(0, math.max(1, math.floor(out / 4)), 1, first, act)
              layer(1, b.channels, 3, first == 1 and stride or 1, act)
              layer(2, out, 1, 1)
            end
          end, (stride > 1 or b:has(prefix .. ".shortcut.convolution.weight", out ~= b.channels)) and function()
            unit(b, prefix .. ".shortcut", out, 1, stride)
          end or nil, act)
        end)
      end
    end
    b:block("classifier.1", function()
      b:average()
      b:linear("classifier.1", b.classes)
    end, "classifier")
  end,
}
