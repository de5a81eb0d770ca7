-- StarCoder2: layer norms, biases everywhere, a plain feed-forward part, a window.
return {
  name = "starcoder2",
  model_types = { "starcoder2" },
  base = "llama",
  config = { eps = "norm_epsilon", use_bias = "use_bias" },
  defaults = { eps = 1e-5, use_bias = true, activation = "gelu_pytorch_tanh", kv_heads = 2, tied = true, positions = 4096 },
  norm = "layer", gated = false,
  bias = function(c)
    local b = c.use_bias
    return { q = b, k = b, v = b, o = b, up = b, down = b }
  end,
  window = function(c) return c.window_size end,
  names = { up = "mlp.c_fc", down = "mlp.c_proj" },
}
