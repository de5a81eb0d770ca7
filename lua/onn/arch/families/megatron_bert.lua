-- Megatron's BERT (arXiv 1909.08053): norms before each half and one behind the last block, none on the embeddings.
return {
  name = "megatron-bert",
  model_types = { "megatron-bert" },
  base = "bert",
  pre_norm = true,
  names = { embed_norm = false, final_norm = "encoder.ln" },
  inside = { q = "attention.self.query", k = "attention.self.key", v = "attention.self.value", o = "attention.output.dense",
    norm1 = "attention.ln", up = "intermediate.dense", down = "output.dense", norm2 = "ln" },
  class = "MegatronBert",
}
