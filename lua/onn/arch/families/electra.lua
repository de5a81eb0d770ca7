-- ELECTRA (arXiv 2003.10555): BERT whose embeddings may be narrower than its blocks; as a generator, or as a discriminator of tokens.
return {
  name = "electra",
  model_types = { "electra" },
  base = "bert",
  config = { embed_width = "embedding_size" },
  defaults = { embed_width = 128 },
  body = "electra",
  names = { project = "embeddings_project" },
  heads = {
    masked = { dense = "generator_predictions.dense", norm = "generator_predictions.LayerNorm", activation = "gelu",
      decoder = "generator_lm_head", bias = { "generator_lm_head.bias" } },
    pretraining = { dense = "discriminator_predictions.dense", activation = "config", out = "discriminator_predictions.dense_prediction",
      outputs = 1, save = {} },
    classes = { dense = "classifier.dense", activation = "gelu", out = "classifier.out_proj", save = { "classifier" } },
    tokens = { out = "classifier", save = { "classifier" } },
    spans = { out = "qa_outputs", outputs = 2, save = { "qa_outputs" } },
  },
  class = "Electra",
}
