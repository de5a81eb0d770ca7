-- Jais 2: layer norms, biases, squared ReLUs in a plain feed-forward part.
return {
  name = "jais2",
  model_types = { "jais2" },
  base = "llama",
  config = { eps = "layer_norm_eps" },
  defaults = { eps = 1e-5, activation = "relu2", attention_bias = true, mlp_bias = true },
  norm = "layer", gated = false,
}
