-- Granite: llama with multipliers on embeddings, residuals, attention scores, and a divisor of the logits.
return {
  name = "granite",
  model_types = { "granite" },
  base = "llama",
  config = { embed_scale = "embedding_multiplier", residual_scale = "residual_multiplier", scale = "attention_multiplier",
    logits_divisor = "logits_scaling" },
  defaults = { scale = 1 },
  derive = function(c) c.logits_scale = c.logits_divisor and 1 / c.logits_divisor end,
}
