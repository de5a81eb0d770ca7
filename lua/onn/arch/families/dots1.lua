-- dots.llm1: qwen3's attention with DeepSeek V3's experts.
local sizes = require "onn.arch.sizes"
local v3 = require "onn.arch.families.deepseek_v3"

return {
  name = "dots1",
  model_types = { "dots1" },
  base = "deepseek_v3",
  defaults = { experts = 128, shared_experts = 2, dense_layers = 1, expert_groups = 1, groups_per_token = 1, expert_scale = 1, expert_inner = 1408,
    experts_per_token = 6 },
  bias = function(c) return { q = c.attention_bias, k = c.attention_bias, v = c.attention_bias, o = c.attention_bias } end,
  derive = function(c)
    local size = c.head_size
    v3.derive(c)
    c.head_size, c.interleaved, c.qk_norm, c.scale_by_yarn, c.rope_size = size, false, "head", false, nil
    c.mixers = sizes.each_layer(c, function() return "attention" end)
  end,
  names = { q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm" },
}
