-- AFMoE (Trinity): norms on inputs and outputs, attention behind a sigmoid gate, rotation in windowed layers only, experts by sigmoids.
local sizes = require "onn.arch.sizes"

return {
  name = "afmoe",
  model_types = { "afmoe" },
  base = "llama",
  config = { experts = { "num_experts", "num_local_experts" }, experts_per_token = "num_experts_per_tok", expert_inner = "moe_intermediate_size",
    shared_experts = "num_shared_experts", dense_layers = "num_dense_layers", expert_scale = "route_scale", window_pattern = "global_attn_every_n_layers",
    mup = "mup_enabled" },
  defaults = { eps = 1e-5, experts = 64, experts_per_token = 6, expert_inner = 1408, shared_experts = 2, dense_layers = 1, expert_scale = 1,
    window_pattern = 4, head_size = 128, mup = false },
  derive = function(c)
    c.qk_norm, c.output_gate, c.embed_scale = "head", "sigmoid", c.mup and math.sqrt(c.width) or nil
    if not c.layer_types then
      c.layer_types = {}
      for layer = 1, c.layers do c.layer_types[layer] = layer % c.window_pattern ~= 0 and "sliding_attention" or "full_attention" end
    end
    c.rotated = sizes.each_layer(c, function(layer) return c.layer_types[layer + 1] == "sliding_attention" end)
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.expert_inner, score = "sigmoid", normalize = true,
      normalize_eps = 1e-20, scale = c.expert_scale, correction = true, shared = c.shared_experts * c.expert_inner }
    c.feeds = sizes.each_layer(c, function(layer) return layer >= c.dense_layers and "moe" or "mlp" end)
  end,
  names = {
    norm1_out = "post_attention_layernorm", norm2 = "pre_mlp_layernorm", norm2_out = "post_mlp_layernorm", output_gate = "self_attn.gate_proj",
    q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm", router = "mlp.router.gate", correction = "mlp.expert_bias",
    expert = "mlp.experts.%d.", expert_gate = "gate_proj", expert_up = "up_proj", expert_down = "down_proj",
    shared_gate = "mlp.shared_experts.gate_proj", shared_up = "mlp.shared_experts.up_proj", shared_down = "mlp.shared_experts.down_proj",
  },
}
