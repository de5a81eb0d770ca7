-- OLMo 2 and 3: llama with norms on the parts' outputs instead of their inputs, and a norm over all heads' queries and keys.
return {
  name = "olmo2",
  model_types = { "olmo2", "olmo3" },
  base = "llama",
  defaults = { eps = 1e-5 },
  derive = function(c, _, config)
    c.qk_norm = "full"
    if config.model_type == "olmo3" and not c.layer_types then
      c.layer_types = {}
      for layer = 1, c.layers do c.layer_types[layer] = layer % 4 ~= 0 and "sliding_attention" or "full_attention" end
    end
  end,
  names = { norm1 = false, norm2 = false, norm1_out = "post_attention_layernorm", norm2_out = "post_feedforward_layernorm",
    q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm" },
}
