-- The text model of Qwen3.5's mixtures of experts: qwen3-next with experts in every layer, and a product for each part of the delta net.
return {
  name = "qwen3_5_moe_text",
  model_types = { "qwen3_5_moe_text" },
  base = "qwen3_next",
  config = { norm_topk = false, moe_interval = false, dense_list = false },
  defaults = { experts = 256, experts_per_token = 8, delta_stored = "parts", inner = function(c) return c.expert_inner end },
}
