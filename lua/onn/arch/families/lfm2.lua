-- LFM2: gated short convolutions, and attention with a norm on each head's query and key in some layers.
local sizes = require "onn.arch.sizes"

-- The feed-forward width of older configs: two thirds of what is said, times a factor, up to a whole multiple.
local function adjusted(c)
  local inner, step = math.floor(2 * c.inner / 3), c.inner_step
  if c.inner_factor then inner = math.floor(c.inner_factor * inner) end
  return step * math.floor((inner + step - 1) / step)
end

-- What only says how first weights are made, or again what the other keys say.
local idle = { "block_mlp_init_scale", "block_out_init_scale", "block_use_xavier_init", "conv_use_xavier_init", "block_norm_eps" }

return {
  name = "lfm2",
  model_types = { "lfm2" },
  base = "llama",
  config = { eps = "norm_eps", inner = { "block_ff_dim", "intermediate_size" }, heads = { "num_attention_heads", "num_heads" },
    tied = { "tie_embedding", "tie_word_embeddings" }, conv = "conv_L_cache", conv_bias = "conv_bias", adjust = "block_auto_adjust_ff_dim",
    inner_factor = "block_ffn_dim_multiplier", inner_step = "block_multiple_of", attention_layers = "full_attn_idxs" },
  defaults = { eps = 1e-5, tied = true, rope_theta = 1e6, conv = 3, conv_bias = false, adjust = true, inner_step = 256, kv_heads = 8,
    positions = 128000 },
  absent = { block_ffn_dim_multiplier = 1 },
  only = { block_use_swiglu = function(v) return v == nil or v == true end, use_pos_enc = function(v) return v == nil or v == true end },
  bias = function() return {} end,
  derive = function(c, wrong, config)
    for _, key in ipairs(idle) do local _ = config[key] end
    for _, key in ipairs { "block_dim", "conv_dim", "conv_dim_out" } do
      if config[key] ~= nil and config[key] ~= c.width then wrong[#wrong + 1] = ("'%s' is not the width %d"):format(key, c.width) end
    end
    c.qk_norm = "head"
    if c.adjust then c.inner = adjusted(c) end
    if c.layer_types then
      c.mixers = sizes.mixers(c, { conv = "short_conv" }, wrong)
    elseif c.attention_layers then
      local full = {}
      for _, layer in ipairs(c.attention_layers) do full[layer] = true end
      c.mixers = sizes.each_layer(c, function(layer) return full[layer] and "attention" or "short_conv" end)
    end
  end,
  names = { final_norm = "model.embedding_norm", norm1 = "operator_norm", norm2 = "ffn_norm", o = "self_attn.out_proj",
    q_norm = "self_attn.q_layernorm", k_norm = "self_attn.k_layernorm", conv = "conv", gate = "feed_forward.w1", up = "feed_forward.w3",
    down = "feed_forward.w2" },
}
