-- A.X K1: DeepSeek V3 with a norm on the output of its experts.
local sizes = require "onn.arch.sizes"
local v3 = require "onn.arch.families.deepseek_v3"

return {
  name = "axk1",
  model_types = { "axk1" },
  base = "deepseek_v3",
  config = { mlp_types = "mlp_layer_types", moe_interval = "moe_layer_freq" },
  defaults = { experts = 192, dense_layers = 1, moe_interval = 1, positions = 32768 },
  only = {},
  derive = function(c)
    v3.derive(c)
    if c.mlp_types then return end
    c.feeds = sizes.each_layer(c, function(layer) return layer >= c.dense_layers and layer % c.moe_interval == 0 and "moe" or "mlp" end)
  end,
  names = { moe_norm = "post_mlp_layernorm" },
}
