-- EXAONE MoE (K-EXAONE): EXAONE 4's attention in a block with norms before its parts, with DeepSeek V3's experts.
local exaone4 = require "onn.arch.families.exaone4"
local v3 = require "onn.arch.families.deepseek_v3"

return {
  name = "exaone_moe",
  model_types = { "exaone_moe" },
  base = "glm4_moe",
  config = { experts = { "num_experts", "num_local_experts" }, shared_experts = { "num_shared_experts", "n_shared_experts" }, use_qk_norm = "none",
    mlp_types = "mlp_layer_types", window_pattern = "none" },
  defaults = { experts = 64, expert_inner = 1024, expert_scale = 2.5, rotary_share = 1, window_size = 4096, positions = 2048,
    kv_heads = function(c) return c.heads end },
  only = { sliding_window_pattern = function() return true end }, -- layer_types says it
  derive = function(c, wrong)
    local size = c.head_size
    v3.derive(c)
    c.head_size, c.interleaved, c.scale_by_yarn, c.rope_size, c.mixers = size, false, false, nil, nil
    if not c.layer_types then wrong[#wrong + 1] = "'layer_types' is missing" return end
    exaone4.derive(c)
  end,
  names = { correction = "mlp.e_score_correction_bias" },
}
