-- Kimi Linear (arXiv 2510.26692): gated delta nets with a decay for each element, latent attention without positions in some layers, experts
-- as DeepSeek V3 chooses them.
local sizes = require "onn.arch.sizes"

-- The numbers of layers in `list`, counted from 1, as a set from 0.
local function numbers(list)
  local set = {}
  for _, layer in ipairs(type(list) == "table" and list or {}) do if type(layer) == "number" then set[layer - 1] = true end end
  return set
end

-- What each layer is, from older configs' lists, or as it is without them.
local function types(c, own)
  local full, list = numbers(own.full_attn_layers), {}
  for layer = 0, c.layers - 1 do
    local attends
    if own.full_attn_layers then attends = full[layer] else attends = layer > 0 and layer % 4 == 0 end
    list[layer + 1] = attends and "full_attention" or "linear_attention"
  end
  return list
end

return {
  name = "kimi_linear",
  model_types = { "kimi_linear" },
  base = "deepseek_v3",
  config = {
    positions = "model_max_length", experts = { "num_experts", "num_local_experts" },
    experts_per_token = { "num_experts_per_token", "num_experts_per_tok" }, shared_experts = { "num_shared_experts", "n_shared_experts" },
    expert_groups = { "num_expert_group", "n_group" }, norm_topk = { "moe_renormalize", "norm_topk_prob" }, mlp_types = "mlp_layer_types",
    delta_heads = "linear_num_heads", delta_size = "linear_head_dim", conv = "linear_conv_kernel_dim", interleave = false, head_size = false,
  },
  defaults = { eps = 1e-5, experts = 256, experts_per_token = 8, expert_inner = 1024, shared_experts = 1, dense_layers = 1, expert_groups = 1,
    groups_per_token = 1, expert_scale = 2.446, interleave = false, delta_heads = 32, delta_size = 128, conv = 4, tied = false,
    positions = 1048576 },
  absent = {},
  only = {
    moe_layer_freq = function(v) return v == nil or v == 1 end, mla_use_nope = function(v) return v == nil or v == true end,
    moe_router_activation_func = function(v) return v == nil or v == "sigmoid" end,
    use_grouped_topk = function(v) return v == nil or type(v) == "boolean" end,
  },
  derive = function(c, wrong, config, store)
    local own = type(config.linear_attn_config) == "table" and config.linear_attn_config or {}
    local _ = config.head_dim -- of older caches
    c.head_size, c.position_type, c.latent_eps = c.nope_size + c.rope_size, "none", 1e-6
    c.delta_heads, c.delta_size, c.conv = own.num_heads or c.delta_heads, own.head_dim or c.delta_size, own.short_conv_kernel_size or c.conv
    for _, size in ipairs { c.delta_heads, c.delta_size, c.conv } do
      if type(size) ~= "number" or size < 1 or size > 2 ^ 20 or size % 1 ~= 0 then
        wrong[#wrong + 1] = "'linear_attn_config' should have positive integers"
        return
      end
    end
    c.delta_key_heads, c.delta_key_size, c.delta_stored = c.delta_heads, c.delta_size, "low_rank"
    c.layer_types = c.layer_types or types(c, own)
    c.mixers = sizes.mixers(c, { linear_attention = "gated_delta" }, wrong)
    for layer, part in pairs(c.mixers) do if part == "attention" then c.mixers[layer] = "latent_attention" end end
    c.delta = sizes.delta(c, wrong)
    c.delta.each_decay, c.delta.gate = true, "sigmoid"
    local width = c.delta_heads * c.delta_size
    c.delta.conv_rows = sizes.each_layer(c, function() return { width, width, width } end)
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.expert_inner, score = "sigmoid", normalize = c.norm_topk,
      normalize_eps = 1e-20, scale = c.expert_scale, groups = c.expert_groups, per_token_groups = c.groups_per_token, group_score = 2,
      correction = true, shared = c.shared_experts * c.expert_inner }
    c.feeds = sizes.each_layer(c, function(layer)
      local sparse = layer >= c.dense_layers
      if c.mlp_types then sparse = c.mlp_types[layer + 1] == "sparse" end
      return sparse and "moe" or "mlp"
    end)
    -- transformers writes dense layers under the experts' name
    for layer = 0, c.layers - 1 do
      if store and store:info(("model.layers.%d.block_sparse_moe.gate_proj.weight"):format(layer)) then
        for _, part in ipairs { "gate", "up", "down" } do c.names[part] = ("block_sparse_moe.%s_proj"):format(part) end
      end
    end
  end,
  names = {
    delta = "self_attn", delta_out = "o_proj", delta_norm = "o_norm", router = "block_sparse_moe.gate",
    correction = "block_sparse_moe.gate.e_score_correction_bias", expert = "block_sparse_moe.experts.%d.", expert_gate = "w1", expert_up = "w3",
    expert_down = "w2", shared_gate = "block_sparse_moe.shared_experts.gate_proj", shared_up = "block_sparse_moe.shared_experts.up_proj",
    shared_down = "block_sparse_moe.shared_experts.down_proj",
  },
}
