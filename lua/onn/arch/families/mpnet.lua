-- MPNet (arXiv 2004.09297): RoBERTa without types, and with a learned number for each bucket of distances on every score.
return {
  name = "mpnet",
  model_types = { "mpnet" },
  base = "roberta",
  config = { buckets = "relative_attention_num_buckets", padding = "none" }, -- its padding is 1 whatever the config says
  defaults = { padding = 1, types = 0, eps = 1e-12, buckets = 32, farthest = 128, places = 512 },
  body = "mpnet",
  names = { relative = "encoder.relative_attention_bias" },
  inside = { q = "attention.attn.q", k = "attention.attn.k", v = "attention.attn.v", o = "attention.attn.o", norm1 = "attention.LayerNorm",
    up = "intermediate.dense", down = "output.dense", norm2 = "output.LayerNorm" },
  class = "MPNet",
}
