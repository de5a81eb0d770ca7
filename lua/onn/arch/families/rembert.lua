-- RemBERT (arXiv 2010.12821): BERT with narrow embeddings and an output table of its own width.
return {
  name = "rembert",
  model_types = { "rembert" },
  base = "bert",
  config = { embed_width = "input_embedding_size", top_width = "output_embedding_size" },
  defaults = { embed_width = 256, top_width = 1664, tied = false },
  fixed = { position_embedding_type = "absolute", is_decoder = false, add_cross_attention = false, tie_word_embeddings = false },
  body = "rembert",
  names = { project = "encoder.embedding_hidden_mapping_in" },
  heads = {
    masked = { dense = "cls.predictions.dense", norm = "cls.predictions.LayerNorm", decoder = "cls.predictions.decoder",
      bias = { "cls.predictions.decoder.bias" } },
    classes = { dense = "pooler.dense", inside = true, activation = "tanh", out = "classifier", save = { "pooler", "classifier" } },
    tokens = { out = "classifier", save = { "classifier" } },
    spans = { out = "qa_outputs", outputs = 2, save = { "qa_outputs" } },
  },
  class = "RemBert",
}
