-- Llama 4: layers that see chunks of the past and turn interleaved pairs, then norm heads without weights; layers that see all, turn
-- nothing and sharpen late queries; experts that see their token scaled by its score, beside one for every token.
local sizes = require "onn.arch.sizes"

return {
  name = "llama4_text",
  model_types = { "llama4_text", "llama4" },
  base = "smollm3",
  config = { experts = "num_local_experts", experts_per_token = "num_experts_per_tok", moe_interval = "interleave_moe_layer_step",
    moe_layers = "moe_layers", dense_inner = "intermediate_size_mlp", chunk_size = "attention_chunk_size", use_qk_norm = "use_qk_norm",
    temperature_tuning = "attn_temperature_tuning", floor_scale = "floor_scale", attn_scale = "attn_scale", use_window = "none",
    window_size = "none" },
  defaults = { experts = 16, experts_per_token = 1, moe_interval = 1, dense_inner = 16384, use_qk_norm = true, temperature_tuning = true,
    floor_scale = 8192, attn_scale = 0.1, head_size = 128, kv_heads = 8, eps = 1e-5, rope_theta = 500000, tied = false, positions = 131072 },
  absent = { attention_chunk_size = 8192 }, -- null means none
  derive = function(c)
    c.interleaved = true
    c.rotated = sizes.each_layer(c, function(layer)
      if c.rope_layers and #c.rope_layers > 0 then return c.rope_layers[layer + 1] ~= 0 end
      return (layer + 1) % c.rope_interval ~= 0
    end)
    if c.use_qk_norm then c.qk_norm, c.qk_norm_plain, c.norm_after_rope = "head", true, true end
    c.chunks = sizes.each_layer(c, function(layer)
      local kind = c.layer_types and c.layer_types[layer + 1] or c.rotated[layer] and "chunked_attention"
      return kind == "chunked_attention" and c.chunk_size or nil
    end)
    if c.temperature_tuning then
      c.query_scale = { floor = c.floor_scale, by = c.attn_scale, from = 1 }
      c.query_scaled = sizes.each_layer(c, function(layer) return not c.rotated[layer] end)
    end
    local sparse = {}
    for _, layer in ipairs(c.moe_layers or {}) do sparse[layer] = true end
    c.feeds = sizes.each_layer(c, function(layer)
      if c.moe_layers then return sparse[layer] and "moe" or "mlp" end
      return (layer + 1) % c.moe_interval == 0 and "moe" or "mlp"
    end)
    c.inners = sizes.each_layer(c, function() return c.dense_inner end)
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.inner, score = "sigmoid_of_chosen", scale_input = true,
      stacked = true, stored = "in_out", shared = c.inner }
  end,
  window = function() end,
  names = {
    gate = "feed_forward.gate_proj", up = "feed_forward.up_proj", down = "feed_forward.down_proj", router = "feed_forward.router",
    experts_gate_up = "feed_forward.experts.gate_up_proj", experts_down = "feed_forward.experts.down_proj",
    shared_gate = "feed_forward.shared_expert.gate_proj", shared_up = "feed_forward.shared_expert.up_proj",
    shared_down = "feed_forward.shared_expert.down_proj",
  },
}
