-- mBART (arXiv 2001.08210): BART with norms before each part, and one behind the last block of either side.
return {
  name = "mbart",
  model_types = { "mbart" },
  base = "bart",
  fixed = { normalize_embedding = true, static_position_embeddings = false },
  pre_norm = true,
  names = { final_norm = "model.%s.layer_norm" },
}
