-- Llama: the block that the others are told apart from. A family names its config keys, its tensors and its switches (onn.arch.sizes).
return {
  name = "llama",
  model_types = { "llama", "cwm", "iquestcoder" },
  config = {
    width = "hidden_size", inner = "intermediate_size", layers = "num_hidden_layers", heads = "num_attention_heads",
    kv_heads = "num_key_value_heads", head_size = "head_dim", eps = "rms_norm_eps", vocabulary = "vocab_size",
    positions = "max_position_embeddings", attention_bias = "attention_bias", mlp_bias = "mlp_bias",
    tied = "tie_word_embeddings", activation = "hidden_act", layer_types = "layer_types", window_size = "sliding_window",
  },
  defaults = { eps = 1e-6, activation = "silu", positions = 2048 },
  bias = function(c) return { q = c.attention_bias, k = c.attention_bias, v = c.attention_bias, o = c.attention_bias,
    gate = c.mlp_bias, up = c.mlp_bias, down = c.mlp_bias } end,
  window = function(c, layer) -- where the config says which layers have one
    return c.layer_types and c.layer_types[layer + 1] == "sliding_attention" and c.window_size or nil
  end,
  names = {
    embed = "model.embed_tokens", final_norm = "model.norm", head = "lm_head", block = "model.layers.%d",
    norm1 = "input_layernorm", norm2 = "post_attention_layernorm",
    q = "self_attn.q_proj", k = "self_attn.k_proj", v = "self_attn.v_proj", o = "self_attn.o_proj",
    gate = "mlp.gate_proj", up = "mlp.up_proj", down = "mlp.down_proj",
  },
}
