-- BitNet b1.58 as trained (master weights): llama with squared ReLUs and a norm before each part's last product.
return {
  name = "bitnet",
  model_types = { "bitnet" },
  base = "llama",
  defaults = { eps = 1e-5, activation = "relu2", kv_heads = 5 },
  only = { quantization_config = function(v) return v == nil end },
  bias = function(c) return { q = c.attention_bias, k = c.attention_bias, v = c.attention_bias, o = c.attention_bias } end,
  names = { o_norm = "self_attn.attn_sub_norm", down_norm = "mlp.ffn_sub_norm" },
}
