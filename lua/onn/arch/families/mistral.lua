-- Mistral: llama with a sliding window over the keys of every layer.
return {
  name = "mistral",
  model_types = { "mistral" },
  base = "llama",
  defaults = { kv_heads = 8, positions = 131072 },
  absent = { sliding_window = 4096 }, -- null means none
  window = function(config) return config.sliding_window end,
}
