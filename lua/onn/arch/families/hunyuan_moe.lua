-- Hunyuan-MoE: hunyuan with a mixture of experts beside an expert for every token.
local sizes = require "onn.arch.sizes"
local base = require "onn.arch.families.hunyuan"

return {
  name = "hunyuan_moe",
  model_types = { "hunyuan_v1_moe" },
  base = "hunyuan",
  config = { experts = { "num_experts", "num_local_experts" }, experts_per_token = { "moe_topk", "num_experts_per_tok" } },
  defaults = { experts = 1, experts_per_token = 1 },
  derive = function(c)
    base.derive(c)
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.inner, score = "softmax", normalize = true, shared = c.inner }
    c.feeds = sizes.each_layer(c, function() return "moe" end)
  end,
  names = {
    router = "mlp.gate.wg", expert = "mlp.experts.%d.", expert_gate = "gate_proj", expert_up = "up_proj", expert_down = "down_proj",
    shared_gate = "mlp.shared_mlp.gate_proj", shared_up = "mlp.shared_mlp.up_proj", shared_down = "mlp.shared_mlp.down_proj",
  },
}
