-- Hugging Face's DINOv2 (arXiv 2304.07193) with its classifier: a ViT whose halves have layer scale, and whose classes are made of the first
-- row and the mean of the patches'.
local values = require "onn.arch.config"
local vit = require "onn.arch.families.vit"

local dinov2 = {
  name = "dinov2", net = "convolutional", model_types = { "dinov2" }, image_size = vit.image_size,
  only = { out_features = true, out_indices = true, stage_names = true, apply_layernorm = true, reshape_hidden_states = true, use_mask_token = true },
  needed = { "hidden_size", "num_hidden_layers", "num_attention_heads" },
  form = { defaults = { patch_size = 14, layer_norm_eps = 1e-6, hidden_act = "gelu" }, norm1 = "norm1", norm2 = "norm2", up = "mlp.fc1",
    down = "mlp.fc2", scales = { "layer_scale1.lambda1", "layer_scale2.lambda1" }, skip = 1,
    inner = function(config) return math.floor(config.hidden_size * (config.mlp_ratio or 4)) end },
}

function dinov2.check(config, wrong)
  vit.checked(dinov2, config, wrong)
  values.check("mlp_ratio", config.mlp_ratio or 4, values.positive, wrong)
  if config.use_swiglu_ffn then wrong[#wrong + 1] = "'use_swiglu_ffn' true cannot be run" end
end

function dinov2.stages(b, config, kind) vit.built(dinov2, b, config, kind) end

return dinov2
