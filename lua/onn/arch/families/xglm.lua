-- XGLM: sines and cosines of positions on scaled embeddings, layer norms before plain parts with biases.
return {
  name = "xglm",
  model_types = { "xglm" },
  config = {
    width = "d_model", inner = "ffn_dim", layers = "num_layers", heads = "attention_heads", vocabulary = "vocab_size",
    positions = "max_position_embeddings", activation = "activation_function", tied = "tie_word_embeddings", scale_embedding = "scale_embedding",
    padding = "pad_token_id",
  },
  defaults = { eps = 1e-5, activation = "gelu", positions = 2048, tied = true, scale_embedding = true },
  only = { add_cross_attention = false },
  norm = "layer", gated = false,
  bias = function() return { q = true, k = true, v = true, o = true, up = true, down = true } end,
  derive = function(c)
    c.embed_scale = c.scale_embedding and math.sqrt(c.width) or nil
    c.sinusoids = { steps = c.width / 2 - 1, offset = 2, empty = c.padding or 1 }
  end,
  names = {
    embed = "model.embed_tokens", final_norm = "model.layer_norm", head = "lm_head", block = "model.layers.%d",
    norm1 = "self_attn_layer_norm", norm2 = "final_layer_norm", q = "self_attn.q_proj", k = "self_attn.k_proj", v = "self_attn.v_proj",
    o = "self_attn.out_proj", up = "fc1", down = "fc2",
  },
}
