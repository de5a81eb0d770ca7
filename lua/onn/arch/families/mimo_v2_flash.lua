-- MiMo V2 Flash: scaled values narrower than keys; windowed layers with sinks, twice the keys' heads and angles of their own; DeepSeek V3's
-- experts without one for every token.
local sizes = require "onn.arch.sizes"
local v3 = require "onn.arch.families.deepseek_v3"

return {
  name = "mimo_v2_flash",
  model_types = { "mimo_v2_flash" },
  base = "deepseek_v3",
  config = { mlp_types = "mlp_layer_types", value_scale = "attention_value_scale", shared_experts = "none", dense_layers = "none", q_rank = "none",
    kv_rank = "none", nope_size = "none", rope_size = "none", interleave = "none" },
  defaults = { experts = 256, expert_inner = 2048, shared_experts = 0, dense_layers = 1, expert_groups = 1, groups_per_token = 1, expert_scale = 1,
    head_size = 192, kv_heads = 4, window_size = 129, eps = 1e-5, positions = 131072, rotary_share = 0.334, interleave = false },
  absent = { attention_value_scale = 0.707 },
  bias = function(c) return { q = c.attention_bias, k = c.attention_bias, v = c.attention_bias } end,
  derive = function(c, wrong, config)
    local size = c.head_size
    v3.derive(c)
    c.head_size, c.scale_by_yarn, c.rope_size, c.mixers = size, false, nil, nil
    if type(config.rope_parameters) ~= "table" or not config.rope_parameters.full_attention then
      wrong[#wrong + 1] = "'rope_parameters' should have 'full_attention' and 'sliding_attention'"
    end
    if c.heads % (2 * c.kv_heads) ~= 0 then
      wrong[#wrong + 1] = ("'num_attention_heads' %d is no multiple of twice 'num_key_value_heads' %d"):format(c.heads, c.kv_heads)
    end
    if not c.layer_types then
      c.layer_types = {}
      for layer = 1, c.layers do c.layer_types[layer] = (layer == 1 or layer % 6 == 0) and "full_attention" or "sliding_attention" end
    end
    local function windowed(layer) return c.layer_types[layer + 1] == "sliding_attention" end
    c.sinks = sizes.each_layer(c, windowed)
    c.shapes = sizes.each_layer(c, function(layer)
      return { heads = c.heads, kv_heads = windowed(layer) and 2 * c.kv_heads or c.kv_heads, head_size = size, value_size = c.value_size }
    end)
    c.kv_heads = 2 * c.kv_heads -- the most, for plans
  end,
  names = { sinks = "self_attn.attention_sink_bias" },
}
