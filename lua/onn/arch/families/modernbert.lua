-- ModernBERT (arXiv 2412.13663): norms before each half, turned queries and keys, gated inner layers, no biases; most layers see only
-- a window on both sides.
local values = require "onn.arch.config"

-- The config with the rotary parameters of one kind of layer, in either spelling.
local function rotary(config, kind, theta)
  local nested = type(config.rope_parameters) == "table" and config.rope_parameters[kind]
  return setmetatable({ rope_parameters = nested or { rope_type = "default", rope_theta = theta } }, { __index = config })
end

local function head(config, more)
  local spec = { dense = "head.dense", norm = "head.norm", dense_bias = config.classifier_bias == true,
    activation = config.classifier_activation or "gelu", pooling = config.classifier_pooling or "cls",
    bias = config.decoder_bias ~= false and { "decoder.bias" } or nil }
  for k, v in pairs(more) do spec[k] = v end
  return spec
end

return {
  name = "modernbert",
  model_types = { "modernbert" },
  base = "bert",
  config = { eps = "norm_eps", activation = "hidden_activation" },
  defaults = { eps = 1e-5, types = 0, places = 8192 },
  fixed = {},
  pre_norm = true,
  first_norm = false,
  body = "model",
  probe = "embeddings.tok_embeddings.weight",
  ropes = function(config)
    return { full = rotary(config, "full_attention", config.global_rope_theta or 160000),
      sliding = rotary(config, "sliding_attention", config.local_rope_theta or config.global_rope_theta or 10000) }
  end,
  layer_kind = function(config, layer)
    local listed = config.layer_types and config.layer_types[layer + 1]
    local full = layer % (config.global_attn_every_n_layers or 3) == 0
    if listed then full = listed == "full_attention" end
    return full and "full" or "sliding"
  end,
  windows = function(config, wrong)
    local size = config.local_attention or 128
    if not values.check("local_attention", size, values.integer(1, 2 ^ 20), wrong) then return nil end
    return { sliding = math.floor(size / 2) }
  end,
  names = { embed = "embeddings.tok_embeddings", place = false, type = false, embed_norm = "embeddings.norm", block = "layers.%d",
    final_norm = "final_norm" },
  inside = { norm1 = "attn_norm", qkv = "attn.Wqkv", o = "attn.Wo", norm2 = "mlp_norm", up_gate = "mlp.Wi", down = "mlp.Wo" },
  bias = function(c)
    local attention, mlp = c.attention_bias == true, c.mlp_bias == true
    return { qkv = attention, o = attention, up_gate = mlp, down = mlp }
  end,
  norm_bias = function(config) return config.norm_bias == true end,
  heads = {
    masked = function(config) return head(config, { decoder = "decoder" }) end,
    classes = function(config) return head(config, { out = "classifier", save = { "head", "classifier" } }) end,
    tokens = function(config) return head(config, { out = "classifier", save = { "head", "classifier" } }) end,
  },
  class = "ModernBert",
}
