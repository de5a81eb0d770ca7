-- mT5 (arXiv 2010.11934): T5 whose logits are not scaled.
return {
  name = "mt5",
  model_types = { "mt5" },
  base = "t5",
  scale_logits = false,
}
