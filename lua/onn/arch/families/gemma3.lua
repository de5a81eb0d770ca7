-- Gemma 3: gemma 2 without caps unless asked for, with a norm on each head, five windowed layers to a full one, and angles of their own
-- for the windowed ones.
return {
  name = "gemma3",
  model_types = { "gemma3_text", "gemma3" },
  base = "gemma2",
  config = { local_theta = "rope_local_base_freq", window_pattern = "sliding_window_pattern" },
  defaults = { window_pattern = 6, rope_theta = 1e6, local_theta = 10000, positions = 131072 },
  absent = {},
  derive = function(c)
    c.norm_from_one, c.embed_scale, c.scale, c.qk_norm = true, math.sqrt(c.width), c.query_scalar ^ -0.5, "head"
    if not c.layer_types then
      c.layer_types = {}
      for layer = 1, c.layers do c.layer_types[layer] = layer % c.window_pattern ~= 0 and "sliding_attention" or "full_attention" end
    end
  end,
  names = { q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm" },
}
