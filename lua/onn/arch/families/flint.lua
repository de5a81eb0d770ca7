-- Flint: qwen3's attention with sinks, turned only in windowed layers; experts by sigmoids beside one for every token, after dense layers.
local sizes = require "onn.arch.sizes"
local qwen2_moe = require "onn.arch.families.qwen2_moe"

return {
  name = "flint",
  model_types = { "flint" },
  base = "qwen2_moe",
  config = { use_window = "none", max_window_layers = "none", qkv_bias = "none" },
  defaults = { experts = 256, experts_per_token = 6, norm_topk = true, dense_list = { 0, 1 }, expert_inner = 512, shared_inner = 1024,
    kv_heads = 4, head_size = 128, window_size = 513, positions = 262144 },
  bias = function(c) return { q = c.attention_bias, k = c.attention_bias, v = c.attention_bias, o = c.attention_bias } end,
  derive = function(c)
    qwen2_moe.derive(c)
    c.moe.score, c.moe.shared_gate, c.qk_norm, c.sinks = "sigmoid", nil, "head", true
    if not c.layer_types then
      c.layer_types = {}
      for layer = 1, c.layers do
        c.layer_types[layer] = (layer <= 2 or layer % 4 == 2 or layer == c.layers) and "full_attention" or "sliding_attention"
      end
    end
    c.rotated = sizes.each_layer(c, function(layer) return c.layer_types[layer + 1] == "sliding_attention" end)
  end,
  window = function(c, layer) return c.layer_types[layer + 1] == "sliding_attention" and c.window_size or nil end,
  names = { q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm", sinks = "self_attn.softmax_offset" },
}
