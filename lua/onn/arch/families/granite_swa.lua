-- Granite with windows in most layers, an angle base of its own for each layer (0: none is turned), and sinks in the attention.
local granite = require "onn.arch.families.granite"

return {
  name = "granite_swa",
  model_types = { "granite_swa" },
  base = "granite",
  config = { layer_thetas = "layer_rope_theta" },
  defaults = { eps = 1e-5, kv_heads = 4, window_size = 128, tied = true, positions = 8192 },
  derive = function(c)
    granite.derive(c)
    c.sinks = true
    if not c.layer_types then
      c.layer_types = {}
      for layer = 1, c.layers do c.layer_types[layer] = layer % 4 == 1 and "full_attention" or "sliding_attention" end
    end
  end,
  names = { sinks = "self_attn.sinks" },
}
