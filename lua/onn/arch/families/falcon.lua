-- Falcon in its three layouts: one key and value head for all (7B), groups of heads with their own (new_decoder_architecture, 40B and
-- 180B), one each (RW); rotary or ALiBi; attention and feed-forward side by side or in sequence.
return {
  name = "falcon",
  model_types = { "falcon", "RefinedWeb", "RefinedWebModel" },
  prefix = "transformer.",
  config = {
    width = "hidden_size", inner = "ffn_hidden_size", layers = { "num_hidden_layers", "n_layer" }, heads = { "num_attention_heads", "n_head" },
    kv_heads = { "num_kv_heads", "n_head_kv" }, vocabulary = "vocab_size", positions = "max_position_embeddings", eps = "layer_norm_epsilon",
    tied = "tie_word_embeddings", alibi = "alibi", multi_query = "multi_query", new_layout = "new_decoder_architecture",
    parallel = "parallel_attn", use_bias = "bias", activation = "activation", norms = "num_ln_in_parallel_attn",
  },
  defaults = { eps = 1e-5, tied = true, positions = 2048, multi_query = true, parallel = true, activation = "gelu",
    inner = function(c) return 4 * c.width end },
  norm = "layer", gated = false,
  bias = function(c) return { q = c.use_bias, o = c.use_bias, up = c.use_bias, down = c.use_bias } end,
  derive = function(c)
    local n = c.names
    if c.new_layout then
      c.qkv = "groups"
      if (c.norms or 2) == 2 then n.norm1, n.norm2 = "ln_attn", "ln_mlp" else n.norm2 = nil end
      c.parallel = true
    else
      c.kv_heads, c.qkv = c.multi_query and 1 or c.heads, c.multi_query and "rows" or "heads"
      if c.parallel then n.norm2 = nil end
    end
    -- added once, as the models were trained; transformers' eager attention adds it twice
    if c.alibi then c.slope_scale = c.head_size ^ -0.5 end
  end,
  names = {
    embed = "transformer.word_embeddings", final_norm = "transformer.ln_f", head = "lm_head", block = "transformer.h.%d",
    norm1 = "input_layernorm", norm2 = "post_attention_layernorm", qkv = "self_attention.query_key_value", o = "self_attention.dense",
    up = "mlp.dense_h_to_4h", down = "mlp.dense_4h_to_h",
  },
}
