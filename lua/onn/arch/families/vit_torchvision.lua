-- torchvision's ViT (arXiv 2010.11929): the three products of attention are one.
local kinds = { vit_b_16 = { 16, 12, 12, 768, 3072 }, vit_b_32 = { 32, 12, 12, 768, 3072 }, vit_l_16 = { 16, 24, 16, 1024, 4096 },
  vit_l_32 = { 32, 24, 16, 1024, 4096 }, vit_h_14 = { 14, 32, 16, 1280, 5120 } }
local EPS = 1e-6
local names = {}
for name in pairs(kinds) do names[#names + 1] = name end

return {
  name = "vit (torchvision)", net = "convolutional", model_types = names, first = "conv_proj",
  image_size = function(config) return config.image_size or 224 end,
  stages = function(b, config, kind)
    local patch, depth, heads, width, inner = unpack(kinds[kind])
    b:block("conv_proj", function()
      b:conv("conv_proj", width, patch, { stride = patch, padding = 0, bias = true })
      width = b.channels
      b:tokens({ "class_token" }, "encoder.pos_embedding", math.floor((config.image_size or 224) / patch) ^ 2)
    end, "stem")
    for i = 0, depth - 1 do
      local name = ("encoder.layers.encoder_layer_%d."):format(i)
      b:block(name:sub(1, -2), function()
        b:residual(function()
          local own = name .. "self_attention."
          b:layer_norm(name .. "ln_1", EPS)
          b:attention(heads, { out = own .. "out_proj", all = function()
            b:linear(own .. "in_proj", 3 * width, { weight = own .. "in_proj_weight", bias = own .. "in_proj_bias" })
          end })
        end)
        b:residual(function()
          b:layer_norm(name .. "ln_2", EPS)
          b:linear(name .. "mlp.0", inner)
          b:activation "gelu"
          b:linear(name .. "mlp.3", width)
        end)
      end)
    end
    b:block("heads.head", function()
      b:layer_norm("encoder.ln", EPS)
      b:first()
      b:linear("heads.head", b.classes)
    end, "classifier")
  end,
}
