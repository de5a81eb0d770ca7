-- Laguna: qwen3's attention behind a softplus gate for each head or element, angles of their own for windowed layers, experts by sigmoids.
local sizes = require "onn.arch.sizes"
local values = require "onn.arch.config"

return {
  name = "laguna",
  model_types = { "laguna" },
  base = "llama",
  config = { experts = { "num_experts", "num_local_experts" }, experts_per_token = "num_experts_per_tok", expert_inner = "moe_intermediate_size",
    shared_inner = "shared_expert_intermediate_size", expert_scale = "moe_routed_scaling_factor", mlp_types = "mlp_layer_types",
    layer_heads = "num_attention_heads_per_layer" },
  defaults = { experts = 256, experts_per_token = 8, expert_inner = 512, shared_inner = 512, expert_scale = 1, kv_heads = 8, head_size = 128,
    window_size = 512, positions = 131072 },
  derive = function(c, wrong, config)
    local gate = config.gating
    c.qk_norm, c.output_gate, c.gate_per_head = "head", "softplus", gate == nil or gate == true or gate == "per-head"
    if not (c.gate_per_head or gate == "per-element") then wrong[#wrong + 1] = "'gating' is not known" end
    if c.layer_heads then
      local most = 0
      c.shapes = sizes.each_layer(c, function(layer)
        local heads = c.layer_heads[layer + 1]
        if not values.integer(1, 2 ^ 20).check(heads) or heads % c.kv_heads ~= 0 then
          wrong[#wrong + 1] = ("'num_attention_heads_per_layer': %s is no multiple of %d"):format(values.shown(heads), c.kv_heads)
          heads = c.heads
        end
        most = math.max(most, heads)
        return { heads = heads, kv_heads = c.kv_heads, head_size = c.head_size, value_size = c.head_size }
      end)
      c.heads = most -- for plans
    end
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.expert_inner, score = "sigmoid", normalize = true,
      scale = c.expert_scale, correction = true, shared = c.shared_inner }
    c.feeds = sizes.each_layer(c, function(layer)
      if c.mlp_types then return c.mlp_types[layer + 1] == "sparse" and "moe" or "mlp" end
      return layer > 0 and "moe" or "mlp"
    end)
  end,
  names = {
    q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm", output_gate = "self_attn.g_proj", router = "mlp.gate",
    correction = "mlp.experts.e_score_correction_bias", expert = "mlp.experts.%d.", expert_gate = "gate_proj", expert_up = "up_proj",
    expert_down = "down_proj", shared_gate = "mlp.shared_expert.gate_proj", shared_up = "mlp.shared_expert.up_proj",
    shared_down = "mlp.shared_expert.down_proj",
  },
}
