-- Gemma 4: gemma 3 with plain norms, also on values, no scale of scores, a factor on each block's output, and full layers with heads of
-- their own size, whose values may be their keys; experts may stand beside the feed-forward part. What its small versions add (inputs of each
-- layer, shared keys) is not supported.
local sizes = require "onn.arch.sizes"
local values = require "onn.arch.config"

-- Heads of full layers as the config says it in one of two ways: a size and a number, or a list of layers that differ.
local function full_shape(c, config, layer, wrong)
  local own = config.per_layer_config
  if own == nil then
    local kv = c.keys_are_values and c.global_kv_heads or c.kv_heads
    return kv, c.global_head_size
  end
  if not values.check("per_layer_config", own, values.object, wrong) then return c.kv_heads, c.head_size end
  local given = own[tostring(layer)] or {}
  if not values.check("per_layer_config", given, values.object, wrong) then return c.kv_heads, c.head_size end
  for key in pairs(given) do
    if key ~= "head_dim" and key ~= "num_key_value_heads" then
      wrong[#wrong + 1] = ("'per_layer_config': %s is not known"):format(values.shown(key))
    end
  end
  return given.num_key_value_heads or c.kv_heads, given.head_dim or c.head_size
end

return {
  name = "gemma4",
  model_types = { "gemma4_text", "gemma4" },
  base = "gemma2",
  config = { query_scalar = "none", attention_cap = "none", keys_are_values = "attention_k_eq_v", global_head_size = "global_head_dim",
    global_kv_heads = "num_global_key_value_heads", with_experts = "enable_moe_block", experts = "num_experts", experts_per_token = "top_k_experts",
    expert_inner = "moe_intermediate_size" },
  defaults = { global_head_size = 512, head_size = 256, kv_heads = 4, window_size = 512, positions = 131072, keys_are_values = false,
    with_experts = false },
  absent = { hidden_size_per_layer_input = 256 },
  only = {
    hidden_size_per_layer_input = 0, num_kv_shared_layers = 0,
    use_bidirectional_attention = function(v) return v == nil or v == "vision" end, -- of images
    use_double_wide_mlp = function() return true end, -- of layers that share keys
  },
  derive = function(c, wrong, config)
    c.embed_scale, c.scale, c.qk_norm, c.value_norm, c.layer_scalar = math.sqrt(c.width), 1, "head", true, true
    if type(config.rope_parameters) ~= "table" or not config.rope_parameters.full_attention then
      wrong[#wrong + 1] = "'rope_parameters' should have 'full_attention' and 'sliding_attention'"
    end
    c.layer_types = c.layer_types or {}
    for layer = 1, c.layers do
      c.layer_types[layer] = c.layer_types[layer] or (layer % 6 ~= 0 and "sliding_attention" or "full_attention")
    end
    c.layer_types[c.layers] = "full_attention"
    if c.with_experts then
      for key, name in pairs { experts = "num_experts", experts_per_token = "top_k_experts", expert_inner = "moe_intermediate_size" } do
        if not c[key] then wrong[#wrong + 1] = ("'%s' is missing"):format(name) end
      end
      c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.expert_inner, score = "softmax", normalize = true, stacked = true }
      c.feeds = sizes.each_layer(c, function() return "dense_and_experts" end)
    end
    local most = { c.kv_heads, c.head_size }
    c.shapes = sizes.each_layer(c, function(layer)
      local kv, size, full = c.kv_heads, c.head_size, c.layer_types[layer + 1] == "full_attention"
      if full or config.per_layer_config ~= nil then kv, size = full_shape(c, config, layer, wrong) end
      if not (values.integer(1, 2 ^ 20).check(kv) and values.integer(1, 2 ^ 20).check(size) and c.heads % kv == 0) then
        wrong[#wrong + 1] = ("heads of layer %d do not fit: %s of size %s for %d"):format(layer, values.shown(kv), values.shown(size), c.heads)
        kv, size = c.kv_heads, c.head_size
      end
      local key = full and "main_head_size" or "local_head_size"
      if c[key] and c[key] ~= size then wrong[#wrong + 1] = "layers of one type have heads of different sizes" end
      c[key], most[1], most[2] = size, math.max(most[1], kv), math.max(most[2], size)
      return { heads = c.heads, kv_heads = kv, head_size = size, value_size = size, shared_kv = full and c.keys_are_values }
    end)
    c.kv_heads, c.head_size = most[1], most[2] -- for plans
  end,
  names = { q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm", layer_scalar = "layer_scalar", router = "router.proj",
    router_scale = "router.scale", expert_scales = "router.per_expert_scale", experts_gate_up = "experts.gate_up_proj",
    experts_down = "experts.down_proj", dense_out = "post_feedforward_layernorm_1", experts_in = "pre_feedforward_layernorm_2",
    experts_out = "post_feedforward_layernorm_2" },
}
