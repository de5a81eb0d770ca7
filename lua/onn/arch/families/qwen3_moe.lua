-- Qwen3-MoE: qwen2-moe without a shared expert, with qwen3's attention.
local base = require "onn.arch.families.qwen2_moe"

return {
  name = "qwen3_moe",
  model_types = { "qwen3_moe" },
  base = "qwen2_moe",
  config = { shared_inner = "none" },
  defaults = { experts = 128, experts_per_token = 8, expert_inner = 768, shared_inner = 0 },
  bias = function(c) return { q = c.attention_bias, k = c.attention_bias, v = c.attention_bias, o = c.attention_bias } end,
  derive = function(c)
    base.derive(c)
    c.qk_norm = "head"
  end,
  window = function(c) return c.use_window and c.window_size or nil end, -- in every layer
  names = { q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm" },
}
