-- Phi 1 and 2: layer norms, biases everywhere, attention and feed-forward side by side after one norm, part of each head rotated.
return {
  name = "phi",
  model_types = { "phi" },
  base = "llama",
  config = { eps = "layer_norm_eps", use_qk_norm = "qk_layernorm" },
  defaults = { eps = 1e-5, activation = "gelu_new", rotary_share = 0.5 },
  norm = "layer", gated = false,
  bias = function() return { q = true, k = true, v = true, o = true, up = true, down = true } end,
  derive = function(c)
    c.parallel, c.head_bias = true, true
    if c.use_qk_norm then c.qk_norm, c.qk_norm_kind, c.qk_norm_bias = "head", "layer", true end
  end,
  names = { norm2 = false, final_norm = "model.final_layernorm", o = "self_attn.dense", up = "mlp.fc1", down = "mlp.fc2",
    q_norm = "self_attn.q_layernorm", k_norm = "self_attn.k_layernorm" },
}
