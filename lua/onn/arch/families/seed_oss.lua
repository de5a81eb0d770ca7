-- Seed-OSS: llama with biases on q, k, v and a switch of its own for the output's.
return {
  name = "seed_oss",
  model_types = { "seed_oss" },
  base = "llama",
  config = { output_bias = "attention_out_bias" },
  defaults = { attention_bias = true, output_bias = false, head_size = 128, kv_heads = 8, positions = 524288 },
  bias = function(c) return { q = c.attention_bias, k = c.attention_bias, v = c.attention_bias, o = c.output_bias,
    gate = c.mlp_bias, up = c.mlp_bias, down = c.mlp_bias } end,
}
