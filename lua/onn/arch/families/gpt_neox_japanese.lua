-- GPT-NeoX-Japanese: gpt_neox without biases but for one on the last attention's output, and with sequential parts.
local sizes = require "onn.arch.sizes"

return {
  name = "gpt_neox_japanese",
  model_types = { "gpt_neox_japanese" },
  base = "gpt_neox",
  config = { inner = "none", inner_multiple = "intermediate_multiple_size" },
  defaults = { inner = function(c) return math.floor(c.width * c.inner_multiple) end, inner_multiple = 4, rotary_share = 1, parallel = false,
    attention_bias = false, tied = true },
  bias = function() return {} end,
  derive = function(c)
    c.qkv = "heads"
    c.o_biased = sizes.each_layer(c, function(layer) return layer == c.layers - 1 end)
  end,
  names = {
    embed = "gpt_neox_japanese.embed_in", final_norm = "gpt_neox_japanese.final_layer_norm", block = "gpt_neox_japanese.layers.%d",
    o_bias = "attention.dense_bias",
  },
}
