-- XLM-RoBERTa (arXiv 1911.02116): RoBERTa.
return {
  name = "xlm-roberta",
  model_types = { "xlm-roberta" },
  base = "roberta",
  class = "XLMRoberta",
}
