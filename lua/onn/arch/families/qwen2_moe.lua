-- Qwen2-MoE: qwen2 with a mixture of experts and one shared expert behind a gate; some layers may be dense.
local sizes = require "onn.arch.sizes"

return {
  name = "qwen2_moe",
  model_types = { "qwen2_moe" },
  base = "qwen2",
  config = { experts = { "num_experts", "num_local_experts" }, experts_per_token = "num_experts_per_tok", expert_inner = "moe_intermediate_size",
    shared_inner = "shared_expert_intermediate_size", norm_topk = "norm_topk_prob", moe_interval = "decoder_sparse_step",
    dense_list = "mlp_only_layers", qkv_bias = "qkv_bias" },
  defaults = { experts = 60, experts_per_token = 4, norm_topk = false, moe_interval = 1, dense_list = {}, expert_inner = 1408, shared_inner = 5632,
    qkv_bias = true },
  bias = function(c) return { q = c.qkv_bias, k = c.qkv_bias, v = c.qkv_bias } end,
  derive = function(c)
    local dense = {}
    for _, layer in ipairs(c.dense_list) do dense[layer] = true end
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.expert_inner, score = "softmax", normalize = c.norm_topk,
      shared = c.shared_inner, shared_gate = true }
    c.feeds = sizes.each_layer(c, function(layer)
      return not dense[layer] and c.experts > 0 and (layer + 1) % c.moe_interval == 0 and "moe" or "mlp"
    end)
  end,
  names = {
    router = "mlp.gate", expert = "mlp.experts.%d.", expert_gate = "gate_proj", expert_up = "up_proj", expert_down = "down_proj",
    shared_gate = "mlp.shared_expert.gate_proj", shared_up = "mlp.shared_expert.up_proj", shared_down = "mlp.shared_expert.down_proj",
    shared_weight = "mlp.shared_expert_gate",
  },
}
