-- Nemotron-H: blocks of one norm and one part each: mamba 2's mixer, attention without positions, a feed-forward part or experts.
local selective = require "onn.arch.selective"
local sizes = require "onn.arch.sizes"

local ssm = {
  kind = "mamba2",
  config = { states = "ssm_state_size", conv = "conv_kernel", heads = "mamba_num_heads", head_size = "mamba_head_dim", groups = "n_groups",
    bias = "use_bias", conv_bias = "use_conv_bias", activation = "mamba_hidden_act", low = "time_step_min" },
  defaults = { states = 128, conv = 4, heads = 128, head_size = 64, groups = 8, bias = false, conv_bias = true, activation = "silu",
    low = 0.001 },
}
local kind_of = { M = "linear_attention", E = "moe", ["*"] = "full_attention", ["-"] = "mlp" }

-- The kinds of the layers from their letters, or nil.
local function by_letters(c)
  if c.layer_types or type(c.pattern) ~= "string" then return c.layer_types end
  local list = {}
  for letter in c.pattern:gmatch "." do list[#list + 1] = kind_of[letter] or letter end
  return list
end

return {
  name = "nemotron_h",
  model_types = { "nemotron_h" },
  base = "llama",
  prefix = "backbone.",
  config = {
    layer_types = "layers_block_type", pattern = "hybrid_override_pattern", eps = "layer_norm_epsilon", activation = "mlp_hidden_act",
    experts = "n_routed_experts", experts_per_token = "num_experts_per_tok", expert_inner = "moe_intermediate_size",
    shared_inner = "moe_shared_expert_intermediate_size", expert_groups = "n_group", groups_per_token = "topk_group",
    norm_topk = "norm_topk_prob", expert_scale = "routed_scaling_factor",
  },
  defaults = { eps = 1e-5, head_size = 128, kv_heads = 8, activation = "relu2", experts = 8, experts_per_token = 2, expert_inner = 7688,
    shared_inner = 7688, expert_groups = 1, groups_per_token = 1, norm_topk = true, tied = false, positions = 4096,
    layers = function(c) return math.max(#(by_letters(c) or {}), 1) end },
  only = { moe_latent_size = function(v) return v == nil end, attention_bias = false, mamba_proj_bias = false },
  gated = false,
  bias = function(c) return { up = c.mlp_bias, down = c.mlp_bias } end,
  derive = function(c, wrong, config)
    -- widths come from heads; one more expert beside the others always; further tokens' layers and windows are not run
    for _, key in ipairs { "expand", "n_shared_experts", "mtp_layers_block_type", "mtp_hybrid_override_pattern", "sliding_window",
      "moe_shared_expert_overlap" } do local _ = config[key] end
    c.layer_types, c.position_type = by_letters(c), "none"
    if not c.layer_types or #c.layer_types ~= c.layers then
      wrong[#wrong + 1] = "'layers_block_type' or 'hybrid_override_pattern' should say what each layer is"
      return
    end
    c.mixers = sizes.mixers(c, { mamba = "mamba2", linear_attention = "mamba2", moe = "moe", mlp = "mlp" }, wrong)
    c.feeds = {}
    c.ssm = selective.describe(config, ssm, c.width, wrong)
    for _, kind in pairs(c.mixers) do
      if kind == "moe" then
        c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.expert_inner, score = "sigmoid", normalize = c.norm_topk,
          normalize_eps = 1e-20, scale = c.expert_scale, groups = c.expert_groups, per_token_groups = c.groups_per_token, group_score = 2,
          correction = true, shared = c.shared_inner }
        if c.mlp_bias then wrong[#wrong + 1] = "'mlp_bias' is not supported with experts" return end
      end
    end
  end,
  names = {
    embed = "backbone.embeddings", final_norm = "backbone.norm_f", block = "backbone.layers.%d", norm1 = "norm", norm2 = false,
    mamba = "mixer", q = "mixer.q_proj", k = "mixer.k_proj", v = "mixer.v_proj", o = "mixer.o_proj", up = "mixer.up_proj",
    down = "mixer.down_proj", router = "mixer.gate", correction = "mixer.gate.e_score_correction_bias", expert = "mixer.experts.%d.",
    expert_gate = "gate_proj", expert_up = "up_proj", expert_down = "down_proj", shared_up = "mixer.shared_experts.up_proj",
    shared_down = "mixer.shared_experts.down_proj",
  },
}
