-- Helium: llama whose pairs of rotated elements lie side by side.
return {
  name = "helium",
  model_types = { "helium", "ernie4_5" },
  base = "llama",
  config = { use_bias = "use_bias" },
  defaults = { eps = 1e-5 },
  derive = function(c) c.interleaved = true end,
  bias = function(c)
    local attention, mlp = c.attention_bias or c.use_bias, c.mlp_bias or c.use_bias
    return { q = attention, k = attention, v = attention, o = c.use_bias, gate = mlp, up = mlp, down = mlp }
  end,
}
