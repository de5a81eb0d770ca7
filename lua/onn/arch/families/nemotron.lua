-- Nemotron: layer norms whose weights count from 1, squared ReLUs in a plain feed-forward part, half of each head rotated.
return {
  name = "nemotron",
  model_types = { "nemotron" },
  base = "llama",
  config = { eps = "norm_eps" },
  defaults = { eps = 1e-5, activation = "relu2", rotary_share = 0.5, positions = 4096 },
  norm = "layer", gated = false,
  derive = function(c) c.norm_from_one = true end,
}
