-- StableLM: layer norms and gated feed-forward, a quarter of each head rotated; with use_parallel_residual one norm serves both parts.
return {
  name = "stablelm",
  model_types = { "stablelm", "stablelm_epoch" },
  base = "llama",
  config = { eps = "layer_norm_eps", use_bias = "use_qkv_bias", parallel = "use_parallel_residual", use_qk_norm = "qk_layernorm" },
  defaults = { eps = 1e-5, rotary_share = 0.25, positions = 4096 },
  norm = "layer",
  bias = function(c) return { q = c.use_bias, k = c.use_bias, v = c.use_bias } end,
  derive = function(c)
    if c.parallel then c.names.norm2 = nil end
    if c.use_qk_norm then c.qk_norm = "each" end
  end,
  names = { q_norm = "self_attn.q_layernorm.norms", k_norm = "self_attn.k_layernorm.norms" },
}
