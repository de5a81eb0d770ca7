-- Qwen3-Next: gated delta nets, with gated attention in every fourth layer, norms' weights that count from 1, experts beside a shared one.
local base = require "onn.arch.families.qwen2_moe"
local sizes = require "onn.arch.sizes"

return {
  name = "qwen3_next",
  model_types = { "qwen3_next" },
  base = "qwen2_moe",
  config = { rotary_share = "partial_rotary_factor", delta_key_heads = "linear_num_key_heads", delta_heads = "linear_num_value_heads",
    delta_key_size = "linear_key_head_dim", delta_size = "linear_value_head_dim", conv = "linear_conv_kernel_dim",
    attention_interval = "full_attention_interval", qkv_bias = false },
  defaults = { head_size = 256, kv_heads = 2, rotary_share = 0.25, experts = 512, experts_per_token = 10, expert_inner = 512, shared_inner = 512,
    norm_topk = true, delta_key_heads = 16, delta_heads = 32, delta_key_size = 128, delta_size = 128, conv = 4, attention_interval = 4,
    delta_stored = "grouped", positions = 32768 },
  only = { attn_output_gate = function(v) return v == nil or v == true end },
  bias = function(c) return { q = c.attention_bias, k = c.attention_bias, v = c.attention_bias, o = c.attention_bias } end,
  derive = function(c, wrong)
    base.derive(c)
    c.qk_norm, c.norm_from_one, c.gate_in_q = "head", true, true
    c.layer_types = c.layer_types or sizes.every(c, c.attention_interval)
    c.mixers = sizes.mixers(c, { linear_attention = "gated_delta" }, wrong)
    c.delta = sizes.delta(c, wrong)
  end,
  names = { q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm", delta = "linear_attn", delta_out = "out_proj", delta_norm = "norm" },
}
