-- FlexOlmo: OLMoE's experts in OLMo 2's block.
local olmoe = require "onn.arch.families.olmoe"

return {
  name = "flex_olmo",
  model_types = { "flex_olmo" },
  base = "olmoe",
  derive = olmoe.derive,
  names = { norm1 = false, norm2 = false, norm1_out = "post_attention_layernorm", norm2_out = "post_feedforward_layernorm" },
}
