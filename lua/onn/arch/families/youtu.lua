-- Youtu: DeepSeek V3's attention in a dense model.
local sizes = require "onn.arch.sizes"
local v3 = require "onn.arch.families.deepseek_v3"

return {
  name = "youtu",
  model_types = { "youtu" },
  base = "deepseek_v3",
  defaults = { tied = true },
  derive = function(c)
    v3.derive(c)
    c.moe = nil
    c.feeds = sizes.each_layer(c, function() return "mlp" end)
  end,
}
