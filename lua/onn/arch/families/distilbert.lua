-- DistilBERT (arXiv 1910.01108): BERT without types and without a pooler.
return {
  name = "distilbert",
  model_types = { "distilbert" },
  base = "bert",
  config = { width = "dim", inner = "hidden_dim", layers = "n_layers", heads = "n_heads", activation = "activation" },
  defaults = { types = 0 },
  body = "distilbert",
  names = { block = "transformer.layer.%d" },
  inside = { q = "attention.q_lin", k = "attention.k_lin", v = "attention.v_lin", o = "attention.out_lin", norm1 = "sa_layer_norm",
    up = "ffn.lin1", down = "ffn.lin2", norm2 = "output_layer_norm" },
  heads = {
    masked = { dense = "vocab_transform", norm = "vocab_layer_norm", decoder = "vocab_projector", bias = { "vocab_projector.bias" } },
    classes = { dense = "pre_classifier", activation = "relu", out = "classifier", save = { "pre_classifier", "classifier" } },
    tokens = { out = "classifier", save = { "classifier" } },
    spans = { out = "qa_outputs", outputs = 2, save = { "qa_outputs" } },
  },
  class = "DistilBert",
}
