-- BioGPT: learned positions (two before the first), embeddings multiplied by sqrt(width), layer norms, biases everywhere.
return {
  name = "biogpt",
  model_types = { "biogpt" },
  prefix = "biogpt.",
  config = {
    width = "hidden_size", inner = "intermediate_size", layers = "num_hidden_layers", heads = "num_attention_heads", vocabulary = "vocab_size",
    positions = "max_position_embeddings", eps = "layer_norm_eps", activation = "hidden_act", tied = "tie_word_embeddings",
    scale_embedding = "scale_embedding",
  },
  defaults = { eps = 1e-12, activation = "gelu", positions = 1024, tied = true, scale_embedding = true },
  norm = "layer", gated = false,
  bias = function() return { q = true, k = true, v = true, o = true, up = true, down = true } end,
  derive = function(c)
    c.eps = 1e-5 -- its norms do not take the config's
    c.learned_positions, c.position_offset, c.embed_scale = true, 2, c.scale_embedding and math.sqrt(c.width) or nil
  end,
  names = {
    embed = "biogpt.embed_tokens", position = "biogpt.embed_positions", final_norm = "biogpt.layer_norm", head = "output_projection",
    block = "biogpt.layers.%d", norm1 = "self_attn_layer_norm", norm2 = "final_layer_norm", q = "self_attn.q_proj", k = "self_attn.k_proj",
    v = "self_attn.v_proj", o = "self_attn.out_proj", up = "fc1", down = "fc2",
  },
}
