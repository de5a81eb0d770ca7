-- Pegasus (arXiv 1912.08777) and Blenderbot (arXiv 2004.13637): mBART without norms on the embeddings, all rows of places used.
return {
  name = "pegasus",
  model_types = { "pegasus", "blenderbot" },
  base = "mbart",
  fixed = {},
  offset = 0,
  names = { embed_norm = false },
}
