-- Hugging Face's ViT (arXiv 2010.11929) and DeiT (2012.12877), which has one more learned row: transformers' ViTForImageClassification.
local values = require "onn.arch.config"

local activations = { gelu = "gelu", gelu_new = "gelu_tanh", gelu_pytorch_tanh = "gelu_tanh", relu = "relu", silu = "silu" }
local size = values.integer(1, 2 ^ 20)

-- What checkpoints call the parts, and what transformers 5 calls them in memory.
local parts = { block = "%s.encoder.layer.%d.", attention = { q = "attention.attention.query", k = "attention.attention.key",
  v = "attention.attention.value", out = "attention.output.dense" }, up = "intermediate.dense", down = "output.dense" }
local other_parts = { block = "%s.layers.%d.", attention = { q = "attention.q_proj", k = "attention.k_proj", v = "attention.v_proj",
  out = "attention.o_proj" }, up = "mlp.fc1", down = "mlp.fc2" }

-- The attention of a block whose names begin with `name`, called as in `names`.
local function attention(b, config, name, names)
  local own = { bias = config.qkv_bias ~= false }
  for role, part in pairs(names.attention) do own[role] = name .. part end
  b:attention(config.num_attention_heads, own)
end
local needed = { "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size" }

return {
  name = "vit", net = "convolutional", model_types = { "vit", "deit" }, activations = activations,
  attention = attention, parts = parts, other_parts = other_parts,
  only = { encoder_stride = true, pooler_output_size = true, pooler_act = true }, -- of other heads
  image_size = function(config) return config.image_size or 224 end,
  check = function(config, wrong)
    for _, key in ipairs(needed) do values.check(key, config[key], size, wrong) end
    values.check("patch_size", config.patch_size or 16, size, wrong)
    values.check("layer_norm_eps", config.layer_norm_eps or 1e-12, values.positive, wrong)
    if not activations[config.hidden_act or "gelu"] then
      wrong[#wrong + 1] = ("'hidden_act' %s is not known"):format(values.shown(config.hidden_act))
    end
  end,
  stages = function(b, config, kind)
    local width, eps, patch, image = config.hidden_size, config.layer_norm_eps or 1e-12, config.patch_size or 16, config.image_size or 224
    local body = kind .. ".embeddings."
    b:block(kind .. ".embeddings", function()
      b:conv(body .. "patch_embeddings.projection", width, patch, { stride = patch, padding = 0, bias = true })
      b:tokens(kind == "deit" and { body .. "cls_token", body .. "distillation_token" } or { body .. "cls_token" },
        body .. "position_embeddings", math.floor(image / patch) ^ 2)
    end, "stem")
    local names = b:has(other_parts.block:format(kind, 0) .. "layernorm_before.weight") and other_parts or parts
    for i = 0, config.num_hidden_layers - 1 do
      local name = names.block:format(kind, i)
      b:block(name:sub(1, -2), function()
        b:residual(function()
          b:layer_norm(name .. "layernorm_before", eps)
          attention(b, config, name, names)
        end)
        b:residual(function()
          b:layer_norm(name .. "layernorm_after", eps)
          b:linear(name .. names.up, config.intermediate_size)
          b:activation(activations[config.hidden_act or "gelu"])
          b:linear(name .. names.down, width)
        end)
      end)
    end
    b:block("classifier", function()
      b:layer_norm(kind .. ".layernorm", eps)
      b:first()
      b:linear("classifier", b.classes)
    end, "classifier")
  end,
}
