-- Hugging Face's DINOv2 (arXiv 2304.07193) with its classifier: a ViT whose halves have layer scale, and whose classes are made of the first
-- row and the mean of the patches'.
local values = require "onn.arch.config"
local vit = require "onn.arch.families.vit"

return {
  name = "dinov2", net = "convolutional", model_types = { "dinov2" }, image_size = vit.image_size,
  only = { out_features = true, out_indices = true, stage_names = true, apply_layernorm = true, reshape_hidden_states = true, use_mask_token = true },
  check = function(config, wrong)
    vit.check(setmetatable({ intermediate_size = 1, patch_size = config.patch_size or 14, layer_norm_eps = config.layer_norm_eps or 1e-6 },
      { __index = config }), wrong)
    values.check("mlp_ratio", config.mlp_ratio or 4, values.positive, wrong)
    if config.use_swiglu_ffn then wrong[#wrong + 1] = "'use_swiglu_ffn' true cannot be run" end
  end,
  stages = function(b, config, kind)
    local width, eps, patch, image = config.hidden_size, config.layer_norm_eps or 1e-6, config.patch_size or 14, config.image_size or 224
    local body = kind .. ".embeddings."
    b:block(kind .. ".embeddings", function()
      b:conv(body .. "patch_embeddings.projection", width, patch, { stride = patch, padding = 0, bias = true })
      b:tokens({ body .. "cls_token" }, body .. "position_embeddings", math.floor(image / patch) ^ 2)
    end, "stem")
    local names = b:has(kind .. ".encoder.layer.0.attention.q_proj.weight") and vit.other_parts or vit.parts
    for i = 0, config.num_hidden_layers - 1 do
      local name = ("%s.encoder.layer.%d."):format(kind, i)
      b:block(name:sub(1, -2), function()
        b:residual(function()
          b:layer_norm(name .. "norm1", eps)
          vit.attention(b, config, name, names)
          b:scale(name .. "layer_scale1.lambda1", true)
        end)
        b:residual(function()
          b:layer_norm(name .. "norm2", eps)
          b:linear(name .. "mlp.fc1", math.floor(width * (config.mlp_ratio or 4)))
          b:activation(vit.activations[config.hidden_act or "gelu"])
          b:linear(name .. "mlp.fc2", width)
          b:scale(name .. "layer_scale2.lambda1", true)
        end)
      end)
    end
    b:block("classifier", function()
      b:layer_norm(kind .. ".layernorm", eps)
      b:first(1)
      b:linear("classifier", b.classes)
    end, "classifier")
  end,
}
