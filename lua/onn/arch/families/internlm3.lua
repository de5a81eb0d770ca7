-- InternLM 3: llama whose switches for biases have other names; the output's follows the feed-forward part's.
return {
  name = "internlm3",
  model_types = { "internlm3" },
  base = "llama",
  config = { attention_bias = { "qkv_bias", "attention_bias" }, mlp_bias = { "bias", "mlp_bias" } },
  defaults = { kv_heads = 2, head_size = 128, positions = 32768, eps = 1e-5 },
  bias = function(c) return { q = c.attention_bias, k = c.attention_bias, v = c.attention_bias, o = c.mlp_bias,
    gate = c.mlp_bias, up = c.mlp_bias, down = c.mlp_bias } end,
}
