-- Mellum: qwen3-moe whose windowed layers have angles of their own.
local base = require "onn.arch.families.qwen3_moe"

return {
  name = "mellum",
  model_types = { "mellum" },
  base = "qwen3_moe",
  config = { mlp_types = "mlp_layer_types" },
  defaults = { norm_topk = true },
  derive = function(c)
    for layer, kind in ipairs(c.mlp_types or {}) do if kind == "dense" then c.dense_list[#c.dense_list + 1] = layer - 1 end end
    base.derive(c)
  end,
  window = function(c, layer) return c.layer_types and c.layer_types[layer + 1] == "sliding_attention" and c.window_size or nil end,
}
