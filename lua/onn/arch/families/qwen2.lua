-- Qwen2: llama with biases on q, k and v, and a window on the layers that the config names.
return {
  name = "qwen2",
  model_types = { "qwen2" },
  base = "llama",
  config = { use_window = "use_sliding_window", max_window_layers = "max_window_layers" },
  defaults = { positions = 32768 },
  bias = function() return { q = true, k = true, v = true } end,
  window = function(c, layer)
    if not c.use_window then return nil end
    if c.layer_types then return c.layer_types[layer + 1] == "sliding_attention" and c.window_size or nil end
    return layer >= (c.max_window_layers or 0) and c.window_size or nil
  end,
}
