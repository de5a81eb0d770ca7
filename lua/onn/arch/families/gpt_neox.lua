-- GPT-NeoX (Pythia): q, k, v in one weight head by head, part of each head rotated, attention and feed-forward side by side after norms
-- of their own.
return {
  name = "gpt_neox",
  model_types = { "gpt_neox" },
  config = {
    width = "hidden_size", inner = "intermediate_size", layers = "num_hidden_layers", heads = "num_attention_heads", vocabulary = "vocab_size",
    positions = "max_position_embeddings", eps = "layer_norm_eps", activation = "hidden_act", tied = "tie_word_embeddings",
    rotary_share = "rotary_pct", rope_theta = "rotary_emb_base", parallel = "use_parallel_residual", attention_bias = "attention_bias",
  },
  defaults = { eps = 1e-5, activation = "gelu", positions = 2048, rotary_share = 0.25, parallel = true, attention_bias = true },
  norm = "layer", gated = false,
  bias = function(c) return { q = c.attention_bias, o = c.attention_bias, up = true, down = true } end,
  derive = function(c) c.qkv = "heads" end,
  names = {
    embed = "gpt_neox.embed_in", final_norm = "gpt_neox.final_layer_norm", head = "embed_out", block = "gpt_neox.layers.%d",
    norm1 = "input_layernorm", norm2 = "post_attention_layernorm", qkv = "attention.query_key_value", o = "attention.dense",
    up = "mlp.dense_h_to_4h", down = "mlp.dense_4h_to_h",
  },
}
