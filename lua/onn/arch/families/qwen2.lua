-- Qwen2: llama with biases on q, k and v, and a window on the layers that the config names.
return {
  name = "qwen2",
  model_types = { "qwen2" },
  base = "llama",
  defaults = { positions = 32768 },
  bias = function() return { q = true, k = true, v = true } end,
  window = function(config, layer)
    if not config.use_sliding_window then return nil end
    if config.layer_types then return config.layer_types[layer + 1] == "sliding_attention" and config.sliding_window or nil end
    return layer >= (config.max_window_layers or 0) and config.sliding_window or nil
  end,
}
