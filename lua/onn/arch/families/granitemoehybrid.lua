-- Granite 4: granitemoe with mamba 2's mixer in most blocks, with experts or without, most often without positions.
local bamba = require "onn.arch.families.bamba"
local selective = require "onn.arch.selective"
local sizes = require "onn.arch.sizes"

return {
  name = "granitemoehybrid",
  model_types = { "granitemoehybrid" },
  base = "granitemoe",
  config = { expert_count = "num_local_experts", experts = false, position_type = "position_embedding_type",
    layer_types = { "layer_types", "layers_block_type" } },
  defaults = { expert_count = 8, shared_inner = 1024 },
  derive = function(c, wrong, config)
    c.logits_scale = c.logits_divisor and 1 / c.logits_divisor
    c.gate_up = true
    if c.position_type ~= "rope" then c.position_type = "none" end
    if c.layer_types then
      c.mixers = sizes.mixers(c, { mamba = "mamba2", linear_attention = "mamba2" }, wrong)
    else
      c.mixers = sizes.each_layer(c, function() return "mamba2" end)
    end
    c.ssm = selective.describe(config, bamba.ssm, c.width, wrong)
    if c.expert_count > 0 then
      c.moe = { experts = c.expert_count, per_token = c.experts_per_token, inner = c.inner, score = "logits", stacked = true,
        shared = c.shared_inner }
    end
    c.inner = c.shared_inner
    c.feeds = sizes.each_layer(c, function() return c.moe and "moe" or "mlp" end)
  end,
  names = { mamba = "mamba", gate_up = "shared_mlp.input_linear", down = "shared_mlp.output_linear" },
}
