-- GraniteMoE with the windows and sinks of granite_swa.
local granitemoe = require "onn.arch.families.granitemoe"
local swa = require "onn.arch.families.granite_swa"

return {
  name = "granitemoe_swa",
  model_types = { "granitemoe_swa" },
  base = "granitemoe",
  config = swa.config,
  defaults = { window_size = 128 },
  derive = function(c, wrong, config)
    granitemoe.derive(c, wrong, config)
    swa.derive(c)
  end,
  names = { sinks = "self_attn.sinks", router = "block_sparse_moe.router", experts_gate_up = "block_sparse_moe.experts.gate_up_proj",
    experts_down = "block_sparse_moe.experts.down_proj" },
}
