-- T5 (arXiv 1910.10683) and what is built like it: RMS norms before each part, no biases, scores that are not scaled but have a learned number
-- for each bucket of distances, the first block's for all.
return {
  name = "t5",
  net = "encoder_decoder",
  model_types = { "t5" },
  config = { width = "d_model", inner = "d_ff", layers = "num_layers", decoder_layers = "num_decoder_layers", heads = "num_heads",
    head_size = "d_kv", vocabulary = "vocab_size", eps = "layer_norm_epsilon", tied = "tie_word_embeddings",
    scale_logits = "scale_decoder_outputs", buckets = "relative_attention_num_buckets", farthest = "relative_attention_max_distance" },
  defaults = { eps = 1e-6, head_size = 64, buckets = 32, farthest = 128 },
  fixed = {},
  rms = true,
  pre_norm = true,
  bias = false,
  unscaled = true,
  relative = "first",
  scale_logits = true,
  activation = function(config)
    local given = config.feed_forward_proj or "relu"
    local gate = type(given) == "string" and given:match "^gated%-(.*)$"
    return { name = gate and (gate == "gelu" and "gelu_new" or gate) or given, gated = gate ~= nil and gate ~= false }
  end,
  names = { embed = "shared", head = "lm_head", encoder_block = "encoder.block.%d", decoder_block = "decoder.block.%d",
    final_norm = "%s.final_layer_norm" },
  inside = { q = "q", k = "k", v = "v", o = "o",
    encoder = { self = "layer.0.SelfAttention", self_norm = "layer.0.layer_norm", gate = "layer.1.DenseReluDense.wi_0",
      gated_up = "layer.1.DenseReluDense.wi_1", up = "layer.1.DenseReluDense.wi", down = "layer.1.DenseReluDense.wo",
      mlp_norm = "layer.1.layer_norm" },
    decoder = { self = "layer.0.SelfAttention", self_norm = "layer.0.layer_norm", cross = "layer.1.EncDecAttention",
      cross_norm = "layer.1.layer_norm", gate = "layer.2.DenseReluDense.wi_0", gated_up = "layer.2.DenseReluDense.wi_1",
      up = "layer.2.DenseReluDense.wi", down = "layer.2.DenseReluDense.wo", mlp_norm = "layer.2.layer_norm" } },
}
