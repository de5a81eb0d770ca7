-- GLM 4.5: attention with half of each head rotated and, if asked for, a norm on each, with DeepSeek V3's experts.
local sizes = require "onn.arch.sizes"
local v3 = require "onn.arch.families.deepseek_v3"

return {
  name = "glm4_moe",
  model_types = { "glm4_moe" },
  base = "deepseek_v3",
  config = { use_qk_norm = "use_qk_norm" },
  defaults = { experts = 128, dense_layers = 1, expert_groups = 1, groups_per_token = 1, expert_scale = 1, expert_inner = 1408, rotary_share = 0.5,
    kv_heads = 8, eps = 1e-5 },
  bias = function(c) return { q = c.attention_bias, k = c.attention_bias, v = c.attention_bias } end,
  derive = function(c)
    local size = c.head_size
    v3.derive(c)
    c.head_size, c.interleaved, c.scale_by_yarn, c.rope_size = size, false, false, nil
    if c.use_qk_norm then c.qk_norm = "head" end
    c.mixers = sizes.each_layer(c, function() return "attention" end)
  end,
  names = { q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm" },
}
