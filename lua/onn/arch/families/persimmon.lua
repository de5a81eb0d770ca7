-- Persimmon: layer norms, biases everywhere, q, k, v in one weight head by head, a layer norm on each head, squared ReLUs.
return {
  name = "persimmon",
  model_types = { "persimmon" },
  base = "llama",
  config = { eps = "layer_norm_eps", use_qk_norm = "qk_layernorm" },
  defaults = { eps = 1e-5, activation = "relu2", rotary_share = 0.5, use_qk_norm = true, positions = 16384 },
  norm = "layer", gated = false,
  bias = function() return { q = true, o = true, up = true, down = true } end,
  derive = function(c)
    c.qkv = "heads"
    if c.use_qk_norm then c.qk_norm, c.qk_norm_kind, c.qk_norm_bias = "head", "layer", true end
  end,
  names = { qkv = "self_attn.query_key_value", o = "self_attn.dense", up = "mlp.dense_h_to_4h", down = "mlp.dense_4h_to_h",
    final_norm = "model.final_layernorm", q_norm = "self_attn.q_layernorm", k_norm = "self_attn.k_layernorm" },
}
