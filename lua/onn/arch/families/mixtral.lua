-- Mixtral: mistral with a mixture of experts in every block.
local sizes = require "onn.arch.sizes"

return {
  name = "mixtral",
  model_types = { "mixtral" },
  base = "mistral",
  config = { experts = "num_local_experts", experts_per_token = "num_experts_per_tok" },
  defaults = { eps = 1e-5, experts = 8, experts_per_token = 2, rope_theta = 1e6 },
  absent = {},
  derive = function(c)
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.inner, score = "softmax", normalize = true }
    c.feeds = sizes.each_layer(c, function() return "moe" end)
  end,
  names = { router = "block_sparse_moe.gate", expert = "block_sparse_moe.experts.%d.", expert_gate = "w1", expert_up = "w3", expert_down = "w2" },
}
