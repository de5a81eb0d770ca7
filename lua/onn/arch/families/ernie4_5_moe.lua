-- ERNIE 4.5 MoE: interleaved rotation, experts by softmax with a correction for choosing, on a range of layers.
local sizes = require "onn.arch.sizes"

return {
  name = "ernie4_5_moe",
  model_types = { "ernie4_5_moe" },
  base = "helium",
  config = {
    experts = { "moe_num_experts", "num_experts", "num_local_experts" }, experts_per_token = { "moe_k", "num_experts_per_tok" },
    expert_inner = "moe_intermediate_size", shared_experts = { "moe_num_shared_experts", "num_shared_experts" },
    dense_layers = "moe_layer_start_index", last_moe = "moe_layer_end_index", moe_interval = "moe_layer_interval", norm_floor = "moe_norm_min",
  },
  defaults = { experts = 64, experts_per_token = 6, expert_inner = 1536, shared_experts = 2, dense_layers = 1, last_moe = -1, moe_interval = 1,
    kv_heads = 4, rope_theta = 500000 },
  derive = function(c)
    c.interleaved = true
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.expert_inner, score = "softmax", normalize = true,
      correction = true, correction_shape = { 1, c.experts }, shared = c.shared_experts * c.expert_inner }
    local last = c.last_moe < 0 and c.layers - 1 or c.last_moe
    c.feeds = sizes.each_layer(c, function(layer)
      return (layer + 1) % c.moe_interval == 0 and layer >= c.dense_layers and layer <= last and "moe" or "mlp"
    end)
  end,
  names = {
    router = "mlp.gate", correction = "mlp.moe_statics.e_score_correction_bias", expert = "mlp.experts.%d.", expert_gate = "gate_proj",
    expert_up = "up_proj", expert_down = "down_proj", shared_gate = "mlp.shared_experts.gate_proj", shared_up = "mlp.shared_experts.up_proj",
    shared_down = "mlp.shared_experts.down_proj",
  },
}
