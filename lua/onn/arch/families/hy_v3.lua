-- Hy 3: qwen3's attention with experts chosen by sigmoids and one for every token, after dense layers.
local sizes = require "onn.arch.sizes"

return {
  name = "hy_v3",
  model_types = { "hy_v3" },
  base = "llama",
  config = { experts = { "num_experts", "num_local_experts" }, experts_per_token = "num_experts_per_tok", expert_inner = "moe_intermediate_size",
    shared_experts = "num_shared_experts", expert_scale = "router_scaling_factor", mlp_types = "mlp_layer_types" },
  defaults = { experts = 192, experts_per_token = 8, expert_inner = 1536, shared_experts = 1, expert_scale = 2.826, kv_heads = 8, head_size = 128,
    eps = 1e-5, rope_theta = 11158840, positions = 131072 },
  only = { enable_moe_fp32_combine = function() return true end }, -- the sum is f32 here
  derive = function(c)
    c.qk_norm = "head"
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.expert_inner, score = "sigmoid", normalize = true,
      normalize_eps = 1e-20, scale = c.expert_scale, correction = true, shared = c.shared_experts * c.expert_inner }
    c.feeds = sizes.each_layer(c, function(layer)
      if c.mlp_types then return c.mlp_types[layer + 1] == "sparse" and "moe" or "mlp" end
      return layer > 0 and "moe" or "mlp"
    end)
  end,
  names = {
    q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm", router = "mlp.router.gate", correction = "mlp.expert_bias",
    expert = "mlp.experts.%d.", expert_gate = "gate_proj", expert_up = "up_proj", expert_down = "down_proj",
    shared_gate = "mlp.shared_mlp.gate_proj", shared_up = "mlp.shared_mlp.up_proj", shared_down = "mlp.shared_mlp.down_proj",
  },
}
