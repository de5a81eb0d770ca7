-- Qwen3: the llama block with a norm on each head's query and key, and no bias unless the config asks.
return {
  name = "qwen3",
  model_types = { "qwen3" },
  base = "qwen2",
  defaults = { head_size = 128 },
  bias = function(c) return { q = c.attention_bias, k = c.attention_bias, v = c.attention_bias, o = c.attention_bias } end,
  derive = function(c) c.qk_norm = "head" end,
  names = { q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm" },
}
