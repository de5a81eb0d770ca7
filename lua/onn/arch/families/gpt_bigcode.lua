-- GPTBigCode (SantaCoder, StarCoder): GPT-2 with weights stored (out, in) and one key and value head for all, or one each.
return {
  name = "gpt_bigcode",
  model_types = { "gpt_bigcode" },
  base = "gpt2",
  config = { multi_query = "multi_query" },
  defaults = { activation = "gelu_pytorch_tanh", multi_query = true },
  derive = function(c)
    c.learned_positions = true
    c.qkv, c.kv_heads = c.multi_query and "rows" or "heads", c.multi_query and 1 or c.heads
    c.scale = c.scale_by_size and c.head_size ^ -0.5 or 1
  end,
}
