-- Hugging Face's ViT (arXiv 2010.11929) and DeiT (2012.12877), which has one more learned row: transformers' ViTForImageClassification.
-- `form` holds what differs in kin: defaults (of config keys), norm1, norm2, up, down (names within a block), scales (names of layer scales of
-- both halves), inner(config), skip (the classes see the mean of all rows but so many, too).
local values = require "onn.arch.config"

local activations = { gelu = "gelu", gelu_new = "gelu_tanh", gelu_pytorch_tanh = "gelu_tanh", relu = "relu", silu = "silu" }
local size = values.integer(1, 2 ^ 20)

-- What checkpoints call the parts, and what transformers 5 calls them in memory.
local stored = { block = "%s.encoder.layer.%d.", q = "attention.attention.query", k = "attention.attention.key", v = "attention.attention.value",
  o = "attention.output.dense", up = "intermediate.dense", down = "output.dense" }
local in_memory = { block = "%s.layers.%d.", q = "attention.q_proj", k = "attention.k_proj", v = "attention.v_proj", o = "attention.o_proj",
  up = "mlp.fc1", down = "mlp.fc2" }

local form = { defaults = { patch_size = 16, layer_norm_eps = 1e-12, image_size = 224, hidden_act = "gelu" }, norm1 = "layernorm_before",
  norm2 = "layernorm_after", scales = {}, inner = function(config) return config.intermediate_size end }

-- A config's key, or its default in this family.
local function value(family, config, key) return config[key] or family.form.defaults[key] end

local function block(b, family, config, prefix, names)
  local own, eps = family.form, value(family, config, "layer_norm_eps")
  b:block(prefix:sub(1, -2), function()
    b:residual(function()
      b:layer_norm(prefix .. own.norm1, eps)
      b:attention(config.num_attention_heads, { q = prefix .. names.q, k = prefix .. names.k, v = prefix .. names.v, out = prefix .. names.o,
        bias = config.qkv_bias ~= false })
      if own.scales[1] then b:scale(prefix .. own.scales[1], true) end
    end)
    b:residual(function()
      b:layer_norm(prefix .. own.norm2, eps)
      b:linear(prefix .. (own.up or names.up), own.inner(config))
      b:activation(activations[value(family, config, "hidden_act")])
      b:linear(prefix .. (own.down or names.down), config.hidden_size)
      if own.scales[2] then b:scale(prefix .. own.scales[2], true) end
    end)
  end)
end

local vit = {
  name = "vit", net = "convolutional", model_types = { "vit", "deit" }, form = form,
  only = { encoder_stride = true, pooler_output_size = true, pooler_act = true }, -- of other heads
  needed = { "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size" },
}

function vit.image_size(config) return config.image_size or form.defaults.image_size end

-- Is a config right for a family of this form?
function vit.checked(family, config, wrong)
  for _, key in ipairs(family.needed) do values.check(key, config[key], size, wrong) end
  values.check("patch_size", value(family, config, "patch_size"), size, wrong)
  values.check("layer_norm_eps", value(family, config, "layer_norm_eps"), values.positive, wrong)
  if #wrong == 0 and config.hidden_size % config.num_attention_heads ~= 0 then
    wrong[1] = ("'hidden_size' %d is no multiple of 'num_attention_heads' %d"):format(config.hidden_size, config.num_attention_heads)
  end
  local act = value(family, config, "hidden_act")
  if not activations[act] then wrong[#wrong + 1] = ("'hidden_act' %s is not known"):format(values.shown(act)) end
end

-- The stages of a family of this form.
function vit.built(family, b, config, kind)
  local body, patch = kind .. ".embeddings.", value(family, config, "patch_size")
  b:block(kind .. ".embeddings", function()
    b:conv(body .. "patch_embeddings.projection", config.hidden_size, patch, { stride = patch, padding = 0, bias = true })
    b:tokens(kind == "deit" and { body .. "cls_token", body .. "distillation_token" } or { body .. "cls_token" }, body .. "position_embeddings",
      math.floor(vit.image_size(config) / patch) ^ 2)
  end, "stem")
  local names = stored
  for _, pattern in ipairs { in_memory.block, stored.block } do -- DINOv2's blocks are called alike in both
    if b:has(pattern:format(kind, 0) .. in_memory.q .. ".weight") then names = setmetatable({ block = pattern }, { __index = in_memory }) end
  end
  for i = 0, config.num_hidden_layers - 1 do block(b, family, config, names.block:format(kind, i), names) end
  b:block("classifier", function()
    b:layer_norm(kind .. ".layernorm", value(family, config, "layer_norm_eps"))
    b:first(family.form.skip)
    b:linear("classifier", b.classes)
  end, "classifier")
end

function vit.check(config, wrong) vit.checked(vit, config, wrong) end
function vit.stages(b, config, kind) vit.built(vit, b, config, kind) end

return vit
