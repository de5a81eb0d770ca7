-- BERT (arXiv 1810.04805): the encoder that the others are told apart from. `names` are the body's, `inside` those within a block,
-- `heads` those on top. `body` is what the body's names begin with where there is a head; `probe`, one of its tensors, tells whether they do.
-- `class` is the family's name in `architectures`; `fixed` are values beside which nothing can be run.
return {
  name = "bert",
  net = "encoder",
  model_types = { "bert" },
  config = {
    width = "hidden_size", inner = "intermediate_size", layers = "num_hidden_layers", heads = "num_attention_heads",
    vocabulary = "vocab_size", places = "max_position_embeddings", types = "type_vocab_size", eps = "layer_norm_eps",
    activation = "hidden_act", tied = "tie_word_embeddings", padding = "pad_token_id", deviation = "initializer_range",
  },
  defaults = { eps = 1e-12, activation = "gelu", places = 512, types = 2, deviation = 0.02 },
  fixed = { position_embedding_type = "absolute", is_decoder = false, add_cross_attention = false },
  body = "bert",
  probe = "embeddings.word_embeddings.weight",
  names = { embed = "embeddings.word_embeddings", place = "embeddings.position_embeddings", type = "embeddings.token_type_embeddings",
    embed_norm = "embeddings.LayerNorm", block = "encoder.layer.%d" },
  inside = { q = "attention.self.query", k = "attention.self.key", v = "attention.self.value", o = "attention.output.dense",
    norm1 = "attention.output.LayerNorm", up = "intermediate.dense", down = "output.dense", norm2 = "output.LayerNorm" },
  heads = {
    masked = { dense = "cls.predictions.transform.dense", norm = "cls.predictions.transform.LayerNorm", decoder = "cls.predictions.decoder",
      bias = { "cls.predictions.bias", "cls.predictions.decoder.bias" } },
    classes = { dense = "pooler.dense", inside = true, activation = "tanh", out = "classifier", save = { "pooler", "classifier" } },
    tokens = { out = "classifier", save = { "classifier" } },
    spans = { out = "qa_outputs", outputs = 2, save = { "qa_outputs" } },
  },
  class = "Bert",
}
