-- Beam: DeepSeek V3's experts without one for every token; attention behind a sigmoid gate with a bias for each head, whose full layers are
-- not turned but sharpen late queries; norms on inputs and outputs; a residual stream that keeps its size.
local sizes = require "onn.arch.sizes"
local v3 = require "onn.arch.families.deepseek_v3"

return {
  name = "beam",
  model_types = { "beam" },
  base = "deepseek_v3",
  config = { experts = { "num_experts", "n_routed_experts" }, mlp_types = "mlp_layer_types", final_cap = "final_logit_softcapping",
    shared_experts = "none", dense_layers = "none", q_rank = "none", kv_rank = "none", nope_size = "none", rope_size = "none",
    value_size = "none", interleave = "none" },
  defaults = { experts = 256, expert_inner = 2560, shared_experts = 0, dense_layers = 3, head_size = 128, kv_heads = 8, window_size = 512,
    positions = 8192, interleave = false },
  absent = { final_logit_softcapping = 30 },
  bias = function(c) return { q = c.attention_bias, k = c.attention_bias, v = c.attention_bias, o = c.attention_bias } end,
  derive = function(c, wrong, config)
    local size, rope = c.head_size, config.rope_parameters
    v3.derive(c)
    c.head_size, c.scale_by_yarn, c.rope_size, c.mixers, c.qk_norm = size, false, nil, nil, "head"
    c.output_gate, c.gate_head_bias, c.depth_scaled = "sigmoid", true, true
    if not c.layer_types then
      c.layer_types = {}
      for layer = 1, c.layers do
        c.layer_types[layer] = layer % 6 ~= 0 and layer < c.layers and "sliding_attention" or "full_attention"
      end
    end
    if rope ~= nil and (type(rope) ~= "table" or rope.full_attention or type(rope.sliding_attention) ~= "table") then
      wrong[#wrong + 1] = "'rope_parameters' should have 'sliding_attention' and nothing for 'full_attention'"
    end
    local function windowed(layer) return c.layer_types[layer + 1] == "sliding_attention" end
    c.rotated = sizes.each_layer(c, windowed)
    c.query_scale = { floor = 2048, power = 0.1, from = 1 }
    c.query_scaled = sizes.each_layer(c, function(layer) return not windowed(layer) end)
  end,
  names = { norm1_out = "post_attention_layernorm", norm2 = "pre_feedforward_layernorm", norm2_out = "post_feedforward_layernorm",
    q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm", output_gate = "self_attn.gate_proj", gate_bias = "self_attn.gate_bias" },
}
