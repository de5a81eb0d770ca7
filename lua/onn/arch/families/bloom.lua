-- BLOOM: ALiBi, a norm on the embeddings, q, k, v in one weight head by head, biases everywhere.
return {
  name = "bloom",
  model_types = { "bloom" },
  prefix = "transformer.",
  config = {
    width = { "hidden_size", "n_embed" }, layers = { "n_layer", "num_hidden_layers" }, heads = { "n_head", "num_attention_heads" },
    vocabulary = "vocab_size", eps = "layer_norm_epsilon", tied = "tie_word_embeddings",
  },
  defaults = { eps = 1e-5, tied = true, positions = 2048, inner = function(c) return 4 * c.width end },
  only = { apply_residual_connection_post_layernorm = false },
  norm = "layer", gated = false,
  bias = function() return { q = true, o = true, up = true, down = true } end,
  derive = function(c) c.alibi, c.qkv, c.activation_op = true, "heads", "gelu_tanh" end,
  names = {
    embed = "transformer.word_embeddings", embed_norm = "transformer.word_embeddings_layernorm", final_norm = "transformer.ln_f",
    head = "lm_head", block = "transformer.h.%d", norm1 = "input_layernorm", norm2 = "post_attention_layernorm",
    qkv = "self_attention.query_key_value", o = "self_attention.dense", up = "mlp.dense_h_to_4h", down = "mlp.dense_4h_to_h",
  },
}
