-- Mistral: llama with a sliding window over the keys of every layer, or of those that the config names.
return {
  name = "mistral",
  model_types = { "mistral", "ministral" },
  base = "llama",
  defaults = { kv_heads = 8, positions = 131072 },
  absent = { sliding_window = 4096 }, -- null means none
  window = function(c, layer)
    if c.layer_types and c.layer_types[layer + 1] ~= "sliding_attention" then return nil end
    return c.window_size
  end,
}
