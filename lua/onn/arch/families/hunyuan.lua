-- Hunyuan: llama with a norm on each head after the rotation.
return {
  name = "hunyuan",
  model_types = { "hunyuan_v1_dense" },
  base = "llama",
  defaults = { eps = 1e-5 },
  bias = function(c) return { q = c.attention_bias, k = c.attention_bias, v = c.attention_bias, o = c.attention_bias } end,
  derive = function(c) c.qk_norm, c.norm_after_rope = "head", true end,
  names = { q_norm = "self_attn.query_layernorm", k_norm = "self_attn.key_layernorm" },
}
