-- GPT-J: one norm, attention and feed-forward side by side, interleaved rotation of the first rotary_dim elements of each head.
return {
  name = "gptj",
  model_types = { "gptj" },
  prefix = "transformer.",
  config = {
    width = "n_embd", inner = "n_inner", layers = "n_layer", heads = "n_head", vocabulary = "vocab_size", positions = "n_positions",
    eps = "layer_norm_epsilon", activation = "activation_function", tied = "tie_word_embeddings", rotary_dims = "rotary_dim",
  },
  defaults = { inner = function(c) return 4 * c.width end, positions = 2048, eps = 1e-5, activation = "gelu_new" },
  absent = { rotary_dim = 64 },
  norm = "layer", gated = false,
  bias = function() return { up = true, down = true } end,
  derive = function(c) c.parallel, c.interleaved, c.head_bias = true, true, true end,
  names = {
    embed = "transformer.wte", final_norm = "transformer.ln_f", head = "lm_head", block = "transformer.h.%d", norm1 = "ln_1",
    q = "attn.q_proj", k = "attn.k_proj", v = "attn.v_proj", o = "attn.out_proj", up = "mlp.fc_in", down = "mlp.fc_out",
  },
}
