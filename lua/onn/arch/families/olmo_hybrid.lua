-- OLMo Hybrid: gated delta nets between norms on their inputs; attention, in other layers, between norms on the outputs.
local sizes = require "onn.arch.sizes"

-- Rows of the three weights of a layer's convolution: as they are stored, since only their whole is told apart, or q's, k's, v's.
local function conv_rows(c, store, layer)
  local keys, rows = c.delta.key_heads * c.delta.key_size, {}
  local nominal, sum = { keys, keys, c.delta.heads * c.delta.size }, 0
  for i, part in ipairs { "q", "k", "v" } do
    local stored = store and store:info(("model.layers.%d.linear_attn.%s_conv1d.weight"):format(layer, part))
    rows[i] = stored and stored.shape[1] or nominal[i]
    sum = sum + rows[i]
  end
  return sum == 2 * keys + nominal[3] and rows or nominal
end

return {
  name = "olmo_hybrid",
  model_types = { "olmo_hybrid" },
  base = "olmo2",
  config = { delta_key_heads = "linear_num_key_heads", delta_heads = "linear_num_value_heads", delta_key_size = "linear_key_head_dim",
    delta_size = "linear_value_head_dim", conv = "linear_conv_kernel_dim", negative = "linear_allow_neg_eigval" },
  defaults = { eps = 1e-6, conv = 4, negative = true, tied = false, delta_key_heads = function(c) return c.heads end,
    delta_heads = function(c) return c.heads end, positions = 65536 },
  derive = function(c, wrong, config, store)
    -- these tell how first weights are made
    for _, key in ipairs { "linear_a_log_min", "linear_a_log_max", "linear_dt_min", "linear_dt_max", "linear_dt_init_floor" } do
      local _ = config[key]
    end
    c.qk_norm = "full"
    if not c.layer_types then
      c.layer_types = sizes.every(c, 4)
      if c.layers < 4 then c.layer_types[c.layers] = "full_attention" end
    end
    c.mixers = sizes.mixers(c, { linear_attention = "gated_delta" }, wrong)
    c.delta_key_size = c.delta_key_size or math.floor(0.75 * c.width / c.delta_key_heads)
    c.delta_size = c.delta_size or 2 * c.delta_key_size
    c.delta_stored = "separate"
    c.delta = sizes.delta(c, wrong)
    c.delta.eps, c.delta.beta_scale = 1e-5, c.negative and 2 or 1
    if #wrong > 0 then return end
    c.delta.conv_rows = sizes.each_layer(c, function(layer) return conv_rows(c, store, layer) end)
    local given = config.rope_parameters -- none where it is absent or names no base
    if type(given) ~= "table" or given.rope_theta == nil then c.position_type = "none" end
    c.norm_names = sizes.each_layer(c, function(layer)
      if c.mixers[layer] == "gated_delta" then return { norm1 = "attention_layer_norm", norm2 = "feedforward_layer_norm" } end
      local old = ("model.layers.%d.feedforward_layer_norm.weight"):format(layer)
      return { norm1_out = store and store:info(old) and "feedforward_layer_norm" or "post_attention_layernorm",
        norm2_out = "post_feedforward_layernorm" }
    end)
  end,
  names = { norm1_out = false, norm2_out = false, delta = "linear_attn", delta_out = "o_proj", delta_norm = "o_norm" },
}
