-- Kolibri: norms on inputs and outputs, rotation in windowed layers only, experts chosen by logits with a correction, weighed by sigmoids.
local sizes = require "onn.arch.sizes"

return {
  name = "kolibri1",
  model_types = { "kolibri1" },
  base = "llama",
  config = { experts = { "num_experts", "num_local_experts" }, experts_per_token = "num_experts_per_tok", inner = "moe_intermediate_size",
    shared_inner = "shared_expert_intermediate_size", norm_topk = "norm_topk_prob" },
  defaults = { experts = 384, experts_per_token = 6, inner = 512, shared_inner = 512, norm_topk = false, window_size = 513, head_size = 128 },
  derive = function(c)
    c.qk_norm = "head"
    if not c.layer_types then
      c.layer_types = {}
      for layer = 1, c.layers do c.layer_types[layer] = layer % 5 ~= 0 and "sliding_attention" or "full_attention" end
    end
    c.rotated = sizes.each_layer(c, function(layer) return c.layer_types[layer + 1] == "sliding_attention" end)
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.inner, score = "sigmoid_of_chosen", normalize = c.norm_topk,
      correction = true, shared = c.shared_inner }
    c.feeds = sizes.each_layer(c, function() return "moe" end)
  end,
  names = {
    norm1_out = "post_attn_norm", norm2_out = "post_ffn_norm", q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm",
    router = "mlp.gate", correction = "moe.router.expert_bias", expert = "mlp.experts.%d.", expert_gate = "gate_proj", expert_up = "up_proj",
    expert_down = "down_proj", shared_gate = "mlp.shared_experts.gate_proj", shared_up = "mlp.shared_experts.up_proj",
    shared_down = "mlp.shared_experts.down_proj",
  },
}
