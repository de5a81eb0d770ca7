-- Sarvam's large model: DeepSeek V3 under some other keys.
local v3 = require "onn.arch.families.deepseek_v3"

return {
  name = "sarvam_mla",
  model_types = { "sarvam_mla" },
  base = "deepseek_v3",
  config = { experts = { "n_routed_experts", "num_experts" }, shared_experts = { "n_shared_experts", "num_shared_experts" } },
  defaults = { experts = 128, dense_layers = 1, expert_groups = 1, groups_per_token = 1 },
  absent = {},
  derive = v3.derive,
}
