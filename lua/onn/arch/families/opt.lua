-- OPT: learned positions (two before the first), ReLU, biases everywhere; embeddings may be narrower than the stream, and norms may
-- follow the sums.
return {
  name = "opt",
  model_types = { "opt" },
  config = {
    width = "hidden_size", inner = "ffn_dim", layers = "num_hidden_layers", heads = "num_attention_heads", vocabulary = "vocab_size",
    positions = "max_position_embeddings", activation = "activation_function", tied = "tie_word_embeddings", use_bias = "enable_bias",
    embed_width = "word_embed_proj_dim", norm_before = "do_layer_norm_before", norm_affine = "layer_norm_elementwise_affine",
  },
  defaults = { activation = "relu", positions = 2048, tied = true, use_bias = true, norm_before = true, norm_affine = true },
  norm = "layer", gated = false,
  bias = function(c)
    local b = c.use_bias
    return { q = b, k = b, v = b, o = b, up = b, down = b }
  end,
  derive = function(c, _, config)
    c.eps, c.learned_positions, c.position_offset, c.norm_plain = 1e-5, true, 2, not c.norm_affine
    if c.embed_width == c.width then c.embed_width = nil end
    if not c.norm_before then
      c.names.norm1_sum, c.names.norm2_sum, c.names.norm1, c.names.norm2 = c.names.norm1, c.names.norm2, nil, nil
    end
    if not c.norm_before or config._remove_final_layer_norm then c.names.final_norm = nil end
  end,
  names = {
    embed = "model.decoder.embed_tokens", position = "model.decoder.embed_positions", final_norm = "model.decoder.final_layer_norm",
    project_in = "model.decoder.project_in", project_out = "model.decoder.project_out", head = "lm_head", block = "model.decoder.layers.%d",
    norm1 = "self_attn_layer_norm", norm2 = "final_layer_norm", q = "self_attn.q_proj", k = "self_attn.k_proj", v = "self_attn.v_proj",
    o = "self_attn.out_proj", up = "fc1", down = "fc2",
  },
}
