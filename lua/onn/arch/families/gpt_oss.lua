-- gpt-oss: sinks in the attention, windows on every other layer, experts whose weights are one tensor each, stored (in, out), gate and up
-- side by side, with clamped gates.
local sizes = require "onn.arch.sizes"

return {
  name = "gpt_oss",
  model_types = { "gpt_oss" },
  base = "llama",
  config = { experts = "num_local_experts", experts_per_token = { "num_experts_per_tok", "experts_per_token" } },
  defaults = { eps = 1e-5, experts = 128, experts_per_token = 4, attention_bias = true, head_size = 64, kv_heads = 8, window_size = 128,
    rope_theta = 150000, positions = 131072 },
  only = { quantization_config = function(v) return v == nil end, swiglu_limit = function(v) return v == nil or v == 7 end },
  derive = function(c)
    c.sinks, c.activation_op, c.gate_up_order = true, "swiglu_oai", "pairs"
    if not c.layer_types then
      c.layer_types = {}
      for layer = 1, c.layers do c.layer_types[layer] = layer % 2 == 1 and "sliding_attention" or "full_attention" end
    end
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.inner, score = "logits", stacked = true, stored = "in_out",
      router_bias = true, expert_bias = true }
    c.feeds = sizes.each_layer(c, function() return "moe" end)
  end,
  names = { sinks = "self_attn.sinks", router = "mlp.router", experts_gate_up = "mlp.experts.gate_up_proj", experts_down = "mlp.experts.down_proj" },
}
