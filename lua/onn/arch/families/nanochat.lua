-- nanochat: norms without weights, one on the embeddings too and one on each head after the rotation, squared ReLUs, capped logits.
return {
  name = "nanochat",
  model_types = { "nanochat" },
  base = "llama",
  config = { final_cap = "final_logit_softcapping" },
  absent = { final_logit_softcapping = 15 },
  defaults = { activation = "relu2" },
  gated = false,
  bias = function(c) return { q = c.attention_bias, k = c.attention_bias, v = c.attention_bias, o = c.attention_bias } end,
  derive = function(c) c.norm_plain, c.qk_norm, c.norm_after_rope, c.qk_norm_plain, c.rope_backwards = true, "head", true, true, true end,
  names = { embed_norm = "none", up = "mlp.fc1", down = "mlp.fc2" },
}
