-- CTRL: sines and cosines of positions on scaled embeddings, layer norms before plain parts with biases, and a bias on the head.
return {
  name = "ctrl",
  model_types = { "ctrl" },
  config = {
    width = "n_embd", inner = "dff", layers = "n_layer", heads = "n_head", vocabulary = "vocab_size", positions = "n_positions",
    tied = "tie_word_embeddings",
  },
  defaults = { eps = 1e-6, inner = 8192, positions = 256, tied = true },
  only = { layer_norm_epsilon = 1e-6 }, -- of the last norm; the others have no choice
  norm = "layer", gated = false,
  bias = function() return { q = true, k = true, v = true, o = true, up = true, down = true } end,
  derive = function(c)
    c.activation_op, c.head_bias, c.embed_scale = "relu", true, math.sqrt(c.width)
    c.sinusoids = { steps = c.width / 2, offset = 0 }
  end,
  names = {
    embed = "transformer.w", final_norm = "transformer.layernorm", head = "lm_head", block = "transformer.h.%d", norm1 = "layernorm1",
    norm2 = "layernorm2", q = "multi_head_attention.Wq", k = "multi_head_attention.Wk", v = "multi_head_attention.Wv",
    o = "multi_head_attention.dense", up = "ffn.0", down = "ffn.2",
  },
}
