-- BART (arXiv 1910.13461): norms after each part, learned places of which the first two rows are not used, norms on the embeddings.
local inside = { q = "q_proj", k = "k_proj", v = "v_proj", o = "out_proj" }
inside.encoder = { self = "self_attn", self_norm = "self_attn_layer_norm", up = "fc1", down = "fc2", mlp_norm = "final_layer_norm" }
inside.decoder = { self = "self_attn", self_norm = "self_attn_layer_norm", cross = "encoder_attn", cross_norm = "encoder_attn_layer_norm",
  up = "fc1", down = "fc2", mlp_norm = "final_layer_norm" }

return {
  name = "bart",
  net = "encoder_decoder",
  model_types = { "bart" },
  config = { width = "d_model", inner = "encoder_ffn_dim", decoder_inner = "decoder_ffn_dim", layers = "encoder_layers",
    decoder_layers = "decoder_layers", heads = "encoder_attention_heads", decoder_heads = "decoder_attention_heads",
    vocabulary = "vocab_size", places = "max_position_embeddings", tied = "tie_word_embeddings", scale_embedding = "scale_embedding" },
  defaults = { eps = 1e-5, places = 1024, scale_embedding = false },
  fixed = { normalize_before = false, add_final_layer_norm = false, normalize_embedding = true, static_position_embeddings = false },
  bias = true,
  offset = 2,
  activation = function(config) return { name = config.activation_function or "gelu" } end,
  names = { embed = "model.shared", head = "lm_head", encoder_block = "model.encoder.layers.%d", decoder_block = "model.decoder.layers.%d",
    place = "model.%s.embed_positions", embed_norm = "model.%s.layernorm_embedding", logits_bias = "final_logits_bias" },
  inside = inside,
}
