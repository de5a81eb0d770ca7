-- OLMoE: llama with a mixture of experts in every block and a norm over all heads' queries and keys.
local sizes = require "onn.arch.sizes"

return {
  name = "olmoe",
  model_types = { "olmoe" },
  base = "llama",
  config = { experts = { "num_experts", "num_local_experts" }, experts_per_token = "num_experts_per_tok", norm_topk = "norm_topk_prob", clip_qkv = "clip_qkv" },
  defaults = { eps = 1e-5, experts = 64, experts_per_token = 8, norm_topk = false },
  derive = function(c)
    c.qk_norm = "full"
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.inner, score = "softmax", normalize = c.norm_topk }
    c.feeds = sizes.each_layer(c, function() return "moe" end)
  end,
  names = { router = "mlp.gate", expert = "mlp.experts.%d.", expert_gate = "gate_proj", expert_up = "up_proj", expert_down = "down_proj",
    q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm" },
}
