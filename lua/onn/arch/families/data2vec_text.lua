-- data2vec for text (arXiv 2202.03555): RoBERTa.
return {
  name = "data2vec-text",
  model_types = { "data2vec-text" },
  base = "roberta",
  body = "data2vec_text",
  class = "Data2VecText",
}
