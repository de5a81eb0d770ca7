-- XLM-RoBERTa XL (arXiv 2105.00572): norms before each half and one behind the last block, none on the embeddings.
return {
  name = "xlm-roberta-xl",
  model_types = { "xlm-roberta-xl" },
  base = "roberta",
  pre_norm = true,
  names = { embed_norm = false, final_norm = "encoder.LayerNorm" },
  inside = { q = "attention.self.query", k = "attention.self.key", v = "attention.self.value", o = "attention.output.dense",
    norm1 = "attention.self_attn_layer_norm", up = "intermediate.dense", down = "output.dense", norm2 = "LayerNorm" },
  class = "XLMRobertaXL",
}
