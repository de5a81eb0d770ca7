-- Apertus: llama with a plain feed-forward part of xIELU (arXiv 2411.13010), whose two slopes each block has learned, and head norms.
return {
  name = "apertus",
  model_types = { "apertus" },
  base = "llama",
  defaults = { eps = 1e-5, activation = "xielu", positions = 65536, rope_theta = 12000000 },
  gated = false,
  derive = function(c) c.qk_norm = "head" end,
  names = { norm1 = "attention_layernorm", norm2 = "feedforward_layernorm", q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm",
    xielu = "mlp.act_fn" },
}
