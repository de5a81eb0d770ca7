-- GLM 4.7 Flash: DeepSeek V3 with layers named dense or sparse.
local v3 = require "onn.arch.families.deepseek_v3"

return {
  name = "glm4_moe_lite",
  model_types = { "glm4_moe_lite" },
  base = "deepseek_v3",
  config = { mlp_types = "mlp_layer_types" },
  defaults = { experts = 64, experts_per_token = 4, expert_inner = 1536, expert_scale = 1.8, expert_groups = 1, groups_per_token = 1, dense_layers = 1,
    nope_size = 192, value_size = 256, eps = 1e-5, positions = 202752 },
  absent = { q_lora_rank = 768 },
  derive = v3.derive,
}
