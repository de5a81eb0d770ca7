-- Sarvam: GLM 4.5's experts, with q, k, v in one weight and other names.
local base = require "onn.arch.families.glm4_moe"

return {
  name = "sarvam_moe",
  model_types = { "sarvam_moe" },
  base = "glm4_moe",
  defaults = { rotary_share = 1, use_qk_norm = true, rope_theta = 8e6, expert_scale = 2.5, head_size = 64, kv_heads = 4 },
  derive = function(c)
    base.derive(c)
    c.qkv = "rows"
  end,
  names = { embed = "model.word_embeddings", qkv = "attention.query_key_value", o = "attention.dense", q_norm = "attention.query_layernorm",
    k_norm = "attention.key_layernorm", correction = "mlp.gate.expert_bias" },
}
