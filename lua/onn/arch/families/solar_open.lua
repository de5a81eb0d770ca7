-- Solar Open: GLM 4.5's experts in every layer of a llama.
local base = require "onn.arch.families.glm4_moe"

return {
  name = "solar_open",
  model_types = { "solar_open" },
  base = "glm4_moe",
  config = { use_qk_norm = "none", dense_layers = "none", inner = { "intermediate_size", "moe_intermediate_size" } },
  defaults = { dense_layers = 0, rotary_share = 1, head_size = 128, rope_theta = 1e6 },
  derive = base.derive,
}
