-- Phi-3 and Phi-4: llama with q, k, v in one weight (rows [Q; K; V]), gate and up in another ([gate; up]), and partial rotary.
return {
  name = "phi3",
  model_types = { "phi3" },
  base = "llama",
  defaults = { eps = 1e-5, positions = 4096 },
  bias = function() return {} end,
  derive = function(c) c.qkv, c.gate_up = "rows", true end,
  window = function(c) return c.window_size end,
  names = { qkv = "self_attn.qkv_proj", gate_up = "mlp.gate_up_proj" },
}
