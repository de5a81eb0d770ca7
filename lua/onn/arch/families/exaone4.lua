-- EXAONE 4: norms on the parts' outputs and on each head; where layers have windows, only those are rotated.
local sizes = require "onn.arch.sizes"

return {
  name = "exaone4",
  model_types = { "exaone4" },
  base = "llama",
  defaults = { eps = 1e-5 },
  derive = function(c)
    c.qk_norm = "head"
    c.rotated = sizes.each_layer(c, function(layer)
      return not c.window_size or not c.layer_types or c.layer_types[layer + 1] == "sliding_attention"
    end)
  end,
  names = { norm1 = false, norm2 = false, norm1_out = "post_attention_layernorm", norm2_out = "post_feedforward_layernorm",
    q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm" },
}
