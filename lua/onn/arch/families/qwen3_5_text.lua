-- Qwen3.5's text model: qwen3-next without experts, and with a product for each part of the delta net.
local base = require "onn.arch.families.qwen3_next"

return {
  name = "qwen3_5_text",
  model_types = { "qwen3_5_text" },
  base = "qwen3_next",
  config = { experts = false, shared_inner = false, expert_inner = false, experts_per_token = false, norm_topk = false, moe_interval = false,
    dense_list = false },
  defaults = { kv_heads = 4, delta_stored = "parts" },
  derive = function(c, wrong)
    base.derive(c, wrong)
    c.moe, c.feeds = nil, nil
  end,
}
