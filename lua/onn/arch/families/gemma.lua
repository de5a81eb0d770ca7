-- Gemma: llama whose norms' weights count from 1, whose embeddings are multiplied by sqrt(width), with GELU gates.
return {
  name = "gemma",
  model_types = { "gemma" },
  base = "llama",
  config = { activation = { "hidden_activation", "hidden_act" } },
  defaults = { activation = "gelu_pytorch_tanh", head_size = 256, tied = true, positions = 8192, kv_heads = 16 },
  derive = function(c)
    if c.activation_op == "gelu" then c.activation_op = "gelu_tanh" end -- the first configs say gelu and mean this
    c.norm_from_one, c.embed_scale = true, math.sqrt(c.width)
  end,
}
