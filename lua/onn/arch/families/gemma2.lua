-- Gemma 2: gemma with norms on inputs and outputs of both parts, soft caps, and a window on every other layer.
local function derive(c)
  c.norm_from_one, c.embed_scale, c.scale = true, math.sqrt(c.width), c.query_scalar ^ -0.5
  if not c.layer_types then
    c.layer_types = {}
    for layer = 1, c.layers do c.layer_types[layer] = layer % 2 == 1 and "sliding_attention" or "full_attention" end
  end
end

return {
  name = "gemma2",
  model_types = { "gemma2" },
  base = "gemma",
  config = { query_scalar = "query_pre_attn_scalar", attention_cap = "attn_logit_softcapping", final_cap = "final_logit_softcapping" },
  defaults = { query_scalar = 256, window_size = 4096, kv_heads = 4 },
  absent = { attn_logit_softcapping = 50, final_logit_softcapping = 30 },
  only = { use_bidirectional_attention = false },
  derive = derive,
  names = { norm1_out = "post_attention_layernorm", norm2 = "pre_feedforward_layernorm", norm2_out = "post_feedforward_layernorm" },
}
