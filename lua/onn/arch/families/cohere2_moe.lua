-- Cohere 2 with experts: their weights are the chosen ones' logits by a softmax or sigmoids; experts for every token are added or averaged
-- with them; the first layers may be dense.
local sizes = require "onn.arch.sizes"

local function pattern(c)
  local types = {}
  for layer = 1, c.layers do
    local at, every = layer, c.prefix_pattern
    if layer > c.dense_layers then at, every = layer - c.dense_layers, c.window_pattern end
    types[layer] = at % every ~= 0 and "sliding_attention" or "full_attention"
  end
  return types
end

return {
  name = "cohere2_moe",
  model_types = { "cohere2_moe" },
  base = "cohere",
  config = { eps = { "rms_norm_eps", "layer_norm_eps" }, experts = { "num_experts", "num_local_experts" }, experts_per_token = "num_experts_per_tok",
    shared_experts = "num_shared_experts", combination = "shared_expert_combination_strategy", selection = "expert_selection_fn",
    norm_topk = "norm_topk_prob", dense_inner = "prefix_dense_intermediate_size", prefix_pattern = "prefix_dense_sliding_window_pattern",
    dense_layers = "first_k_dense_replace", mlp_types = "mlp_layer_types", use_qk_norm = "none" },
  defaults = { experts = 8, experts_per_token = 2, shared_experts = 0, combination = "average", selection = "softmax", norm_topk = true,
    prefix_pattern = 1, dense_layers = 0, head_size = 128, window_size = 4096 },
  only = { layer_norm_eps = function() return true end }, -- has no meaning beside rms_norm_eps
  derive = function(c, wrong, config)
    if config.rms_norm_eps ~= nil then c.norm = "rms" else c.norm_bias = false end
    c.parallel, c.interleaved, c.layer_types = true, true, c.layer_types or pattern(c)
    local score = ({ softmax = "logits", sigmoid = "sigmoid_of_chosen" })[c.selection]
    if not score then wrong[#wrong + 1] = "'expert_selection_fn' is not known" end
    if c.combination ~= "average" and c.combination ~= "sum" then wrong[#wrong + 1] = "'shared_expert_combination_strategy' is not known" end
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.inner, score = score, normalize = score ~= "logits" and c.norm_topk,
      shared = c.shared_experts * c.inner, mean_with_shared = c.combination == "average" }
    c.feeds = sizes.each_layer(c, function(layer)
      if c.mlp_types then return c.mlp_types[layer + 1] == "dense" and "mlp" or "moe" end
      return layer < c.dense_layers and "mlp" or "moe"
    end)
    c.inners = sizes.each_layer(c, function() return c.dense_inner or c.inner end)
    c.rotated = sizes.each_layer(c, function(layer)
      return c.layer_types[layer + 1] == "sliding_attention" or c.feeds[layer] == "mlp" and c.prefix_pattern == 1
    end)
  end,
  names = {
    router = "mlp.gate", expert = "mlp.experts.%d.", expert_gate = "gate_proj", expert_up = "up_proj", expert_down = "down_proj",
    shared_gate = "mlp.shared_experts.gate_proj", shared_up = "mlp.shared_experts.up_proj", shared_down = "mlp.shared_experts.down_proj",
  },
}
