-- MiniMax M2: a norm over all heads, part of each head rotated, experts chosen by sigmoids with a correction.
local sizes = require "onn.arch.sizes"

return {
  name = "minimax_m2",
  model_types = { "minimax_m2" },
  base = "mixtral",
  config = { rotary_dims = "rotary_dim" },
  defaults = { eps = 1e-6, experts = 256, experts_per_token = 8, rope_theta = 5e6, kv_heads = 8, head_size = 128 },
  window = function() end,
  derive = function(c)
    c.qk_norm = "full"
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.inner, score = "sigmoid", normalize = true, correction = true }
    c.feeds = sizes.each_layer(c, function() return "moe" end)
  end,
  names = { q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm", correction = "block_sparse_moe.e_score_correction_bias" },
}
