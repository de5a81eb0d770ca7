-- Lara Mini: gated delta nets, attention with rotation in windowed layers and none in the others, experts beside a shared one.
local qwen = require "onn.arch.families.qwen3_next"
local sizes = require "onn.arch.sizes"

local pattern = { "linear_attention", "sliding_attention", "linear_attention", "full_attention", "sliding_attention" }

return {
  name = "lara_mini",
  model_types = { "lara_mini" },
  base = "qwen3_next",
  config = { rotary_share = false, moe_interval = false, dense_list = false, attention_interval = false },
  defaults = { head_size = 128, kv_heads = 4, experts = 128, experts_per_token = 4, delta_key_heads = 8, delta_heads = 16, window_size = 512,
    tied = true, rotary_share = 1, delta_stored = "one", positions = 131072, inner = function(c) return c.expert_inner end },
  only = {},
  window = function(c, layer) return c.layer_types[layer + 1] == "sliding_attention" and c.window_size or nil end,
  derive = function(c, wrong)
    if not c.layer_types then
      c.layer_types = {}
      for layer = 1, c.layers do c.layer_types[layer] = pattern[(layer - 1) % #pattern + 1] end
    end
    qwen.derive(c, wrong)
    c.norm_from_one, c.gate_in_q = nil, nil
    c.rotated = sizes.each_layer(c, function(layer) return c.layer_types[layer + 1] == "sliding_attention" end)
    c.moe.stacked, c.moe.shared_gate = true, nil
  end,
  names = { delta_norm = "out_norm", experts_gate_up = "mlp.experts.gate_up_proj", experts_down = "mlp.experts.down_proj" },
}
