-- Aria's text model: llama with experts whose weights are one tensor each, stored (in, out), and experts for every token.
local sizes = require "onn.arch.sizes"

return {
  name = "aria_text",
  model_types = { "aria_text" },
  base = "llama",
  config = { experts = "moe_num_experts", experts_per_token = "moe_topk", shared_experts = "moe_num_shared_experts" },
  defaults = { experts = 8, experts_per_token = 2, shared_experts = 2 },
  only = { hidden_act = "silu" },
  derive = function(c)
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.inner, score = "logits", stacked = true, stored = "in_out",
      shared = c.shared_experts * c.inner }
    c.feeds = sizes.each_layer(c, function() return "moe" end)
  end,
  names = {
    router = "mlp.router", experts_gate_up = "mlp.experts.fc1.weight", experts_down = "mlp.experts.fc2.weight",
    shared_gate = "mlp.shared_experts.gate_proj", shared_up = "mlp.shared_experts.up_proj", shared_down = "mlp.shared_experts.down_proj",
  },
}
