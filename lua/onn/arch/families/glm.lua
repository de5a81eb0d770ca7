-- GLM: llama with gate and up in one weight, biases on q, k, v, and half of each head rotated, interleaved.
return {
  name = "glm",
  model_types = { "glm" },
  base = "llama",
  defaults = { attention_bias = true, rotary_share = 0.5, head_size = 128, positions = 131072 },
  bias = function(c) return { q = c.attention_bias, k = c.attention_bias, v = c.attention_bias } end,
  derive = function(c) c.interleaved, c.gate_up = true, true end,
  names = { gate_up = "mlp.gate_up_proj" },
}
