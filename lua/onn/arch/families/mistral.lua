-- Mistral: llama with a sliding window over the keys of every layer.
return {
  name = "mistral",
  model_types = { "mistral" },
  base = "llama",
  window = function(config) return config.sliding_window end,
}
