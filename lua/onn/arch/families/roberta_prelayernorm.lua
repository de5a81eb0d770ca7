-- RoBERTa with norms before each half (arXiv 1904.01038's option) and one behind the last block.
return {
  name = "roberta-prelayernorm",
  model_types = { "roberta-prelayernorm" },
  base = "roberta",
  pre_norm = true,
  body = "roberta_prelayernorm",
  names = { final_norm = "LayerNorm" },
  inside = { q = "attention.self.query", k = "attention.self.key", v = "attention.self.value", o = "attention.output.dense",
    norm1 = "attention.LayerNorm", up = "intermediate.dense", down = "output.dense", norm2 = "intermediate.LayerNorm" },
  class = "RobertaPreLayerNorm",
}
