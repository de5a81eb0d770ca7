-- GraniteMoE: granite with experts whose weights are one tensor each; an expert that sees every token may stand beside them.
local sizes = require "onn.arch.sizes"

return {
  name = "granitemoe",
  model_types = { "granitemoe", "granitemoeshared" },
  base = "granite",
  config = { experts = "num_local_experts", experts_per_token = "num_experts_per_tok", shared_inner = "shared_intermediate_size" },
  defaults = { experts = 8, experts_per_token = 2, shared_inner = 0 },
  derive = function(c, _, config)
    c.logits_scale = c.logits_divisor and 1 / c.logits_divisor
    c.gate_up = true
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.inner, score = "logits", stacked = true,
      shared = config.model_type ~= "granitemoe" and c.shared_inner or 0 }
    c.feeds = sizes.each_layer(c, function() return "moe" end)
  end,
  names = {
    router = "block_sparse_moe.router.layer", experts_gate_up = "block_sparse_moe.input_linear.weight",
    experts_down = "block_sparse_moe.output_linear.weight", shared_gate_up = "shared_mlp.input_linear", shared_down = "shared_mlp.output_linear",
  },
}
