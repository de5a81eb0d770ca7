-- Phi-MoE: mixtral with layer norms, biases, and two experts chosen one after another, each weighed among its near rivals (arXiv 2310.00811).
local sizes = require "onn.arch.sizes"

return {
  name = "phimoe",
  model_types = { "phimoe" },
  base = "mixtral",
  config = { head_bias = "lm_head_bias", jitter = "router_jitter_noise" },
  defaults = { experts = 16, eps = 1e-5, rope_theta = 1e6, jitter = 0.01, head_bias = false, positions = 131072 },
  rotary = { short_mscale = true, long_mscale = true },
  norm = "layer",
  derive = function(c, wrong)
    if c.experts_per_token ~= 2 then wrong[#wrong + 1] = "'num_experts_per_tok' should be 2 for phimoe" end
    c.moe = { experts = c.experts, per_token = 2, inner = c.inner, score = "rivals", margin = 2 * c.jitter }
    c.feeds = sizes.each_layer(c, function() return "moe" end)
  end,
}
