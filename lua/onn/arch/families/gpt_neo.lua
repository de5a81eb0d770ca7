-- GPT-Neo: learned positions, unscaled scores, q, k, v without bias, a window on the layers that attention_types calls local.
return {
  name = "gpt_neo",
  model_types = { "gpt_neo" },
  prefix = "transformer.",
  config = {
    width = "hidden_size", inner = "intermediate_size", layers = "num_layers", heads = "num_heads", vocabulary = "vocab_size",
    positions = "max_position_embeddings", eps = "layer_norm_epsilon", activation = "activation_function", tied = "tie_word_embeddings",
    window_size = "window_size", layer_kinds = "attention_layers", window_types = "attention_types",
  },
  defaults = { inner = function(c) return 4 * c.width end, positions = 2048, eps = 1e-5, activation = "gelu_new", tied = true, window_size = 256 },
  norm = "layer", gated = false,
  bias = function() return { o = true, up = true, down = true } end,
  derive = function(c, wrong)
    c.learned_positions, c.scale = true, 1
    if not c.layer_kinds and c.window_types then -- [[[kinds...], times], ...]
      c.layer_kinds = {}
      for _, group in ipairs(c.window_types) do
        local kinds, times = type(group) == "table" and group[1], type(group) == "table" and group[2]
        if type(kinds) ~= "table" or type(times) ~= "number" or times > 10000 then
          wrong[#wrong + 1] = "'attention_types' should be a list of [[kinds], times]"
          return
        end
        for _ = 1, times do for _, kind in ipairs(kinds) do c.layer_kinds[#c.layer_kinds + 1] = kind end end
      end
    end
    if c.layer_kinds and #c.layer_kinds < c.layers then wrong[#wrong + 1] = "'attention_types' says less than there are layers" end
  end,
  window = function(c, layer) return c.layer_kinds and c.layer_kinds[layer + 1] == "local" and c.window_size or nil end,
  names = {
    embed = "transformer.wte", position = "transformer.wpe", final_norm = "transformer.ln_f", head = "lm_head", block = "transformer.h.%d",
    norm1 = "ln_1", norm2 = "ln_2", q = "attn.attention.q_proj", k = "attn.attention.k_proj", v = "attn.attention.v_proj",
    o = "attn.attention.out_proj", up = "mlp.c_fc", down = "mlp.c_proj",
  },
}
