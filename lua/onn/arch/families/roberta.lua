-- RoBERTa and what is built like it: places are counted from behind the padding's id, and a head of its own.
return {
  name = "roberta",
  model_types = { "roberta" },
  base = "bert",
  defaults = { types = 1, places = 514, padding = 1, eps = 1e-5 },
  offset = function(c) return c.padding + 1 end,
  body = "roberta",
  class = "Roberta",
  heads = {
    masked = { dense = "lm_head.dense", norm = "lm_head.layer_norm", decoder = "lm_head.decoder", bias = { "lm_head.bias", "lm_head.decoder.bias" },
      activation = "gelu" },
    classes = { dense = "classifier.dense", activation = "tanh", out = "classifier.out_proj", save = { "classifier" } },
    tokens = { out = "classifier", save = { "classifier" } },
    spans = { out = "qa_outputs", outputs = 2, save = { "qa_outputs" } },
  },
}
