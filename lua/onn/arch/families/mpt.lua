-- MPT: ALiBi, layer norms without bias, no biases at all, q, k, v in one weight.
local values = require "onn.arch.config"

return {
  name = "mpt",
  model_types = { "mpt" },
  prefix = "transformer.",
  config = {
    width = "d_model", layers = "n_layers", heads = "n_heads", vocabulary = "vocab_size", positions = "max_seq_len", eps = "layer_norm_epsilon",
    expansion = "expansion_ratio", tied = "tie_word_embeddings",
  },
  defaults = { eps = 1e-5, tied = true, positions = 2048, expansion = 4, inner = function(c) return c.width * c.expansion end },
  only = { no_bias = true, logit_scale = false },
  norm = "layer", gated = false,
  derive = function(c, wrong, config)
    local a = config.attn_config or {}
    if not values.check("attn_config", a, values.object, wrong) then return end
    if a.alibi == false then wrong[#wrong + 1] = "'attn_config.alibi' = false is not supported for mpt" end
    if (a.alibi_bias_max or 8) ~= 8 then wrong[#wrong + 1] = "'attn_config.alibi_bias_max' other than 8 is not supported for mpt" end
    if a.qk_ln then wrong[#wrong + 1] = "'attn_config.qk_ln' is not supported for mpt" end
    if a.prefix_lm then wrong[#wrong + 1] = "'attn_config.prefix_lm' is not supported for mpt" end
    for _, key in ipairs { "clip_qkv", "softmax_scale" } do
      if a[key] ~= nil then values.check("attn_config." .. key, a[key], values.positive, wrong) end
    end
    c.alibi, c.qkv, c.norm_bias, c.activation_op, c.clip_qkv, c.scale = true, "rows", false, "gelu", a.clip_qkv, a.softmax_scale
  end,
  names = {
    embed = "transformer.wte", final_norm = "transformer.norm_f", head = "lm_head", block = "transformer.blocks.%d", norm1 = "norm_1",
    norm2 = "norm_2", qkv = "attn.Wqkv", o = "attn.out_proj", up = "ffn.up_proj", down = "ffn.down_proj",
  },
}
