-- The first GPT: GPT-2 with norms on the sums instead of before the parts, and none at the end.
return {
  name = "openai_gpt",
  model_types = { "openai-gpt" },
  base = "gpt2",
  config = { activation = "afn" },
  defaults = { activation = "gelu", positions = 512 },
  derive = function(c)
    c.qkv, c.learned_positions, c.transposed, c.activation_op = "rows", true, true, c.activation_op == "gelu" and "gelu_tanh" or c.activation_op
  end,
  names = { embed = "transformer.tokens_embed", position = "transformer.positions_embed", final_norm = false, norm1 = false, norm2 = false,
    norm1_sum = "ln_1", norm2_sum = "ln_2" },
}
