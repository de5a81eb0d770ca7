-- LFM2 MoE: lfm2 with experts chosen by sigmoids and a bias, after some dense layers.
local sizes = require "onn.arch.sizes"

return {
  name = "lfm2_moe",
  model_types = { "lfm2_moe" },
  base = "lfm2",
  config = { inner = "intermediate_size", experts = "num_experts", experts_per_token = "num_experts_per_tok",
    expert_inner = "moe_intermediate_size", dense_layers = "num_dense_layers", expert_bias = "use_expert_bias",
    expert_scale = "routed_scaling_factor", norm_topk = "norm_topk_prob" },
  defaults = { experts = 32, experts_per_token = 4, expert_inner = 1792, dense_layers = 2, expert_bias = true, norm_topk = true },
  derive = function(c, wrong)
    c.qk_norm = "head"
    if not c.layer_types then wrong[#wrong + 1] = "'layer_types' is missing" return end
    c.mixers = sizes.mixers(c, { conv = "short_conv" }, wrong)
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.expert_inner, score = "sigmoid", normalize = c.norm_topk,
      normalize_eps = 1e-6, scale = c.expert_scale, correction = c.expert_bias }
    c.feeds = sizes.each_layer(c, function(layer) return layer >= c.dense_layers and "moe" or "mlp" end)
  end,
  names = { router = "feed_forward.gate", correction = "feed_forward.expert_bias", expert = "feed_forward.experts.%d.", expert_gate = "w1",
    expert_up = "w3", expert_down = "w2" },
}
