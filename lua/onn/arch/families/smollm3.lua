-- SmolLM3: llama without rotation in every fourth layer, or in those that the config names (0 in no_rope_layers).
local sizes = require "onn.arch.sizes"

return {
  name = "smollm3",
  model_types = { "smollm3" },
  base = "llama",
  config = { rope_layers = "no_rope_layers", rope_interval = "no_rope_layer_interval", use_window = "use_sliding_window" },
  defaults = { rope_interval = 4, tied = true, rope_theta = 2000000, positions = 32768, kv_heads = 4 },
  derive = function(c)
    c.rotated = sizes.each_layer(c, function(layer)
      if c.rope_layers then return c.rope_layers[layer + 1] ~= 0 end
      return (layer + 1) % c.rope_interval ~= 0
    end)
  end,
  window = function(c, layer)
    if not c.use_window or not c.window_size then return nil end
    if c.layer_types then return c.layer_types[layer + 1] == "sliding_attention" and c.window_size or nil end
    return not c.rotated[layer] and c.window_size or nil
  end,
}
