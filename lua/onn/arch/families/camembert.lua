-- CamemBERT (arXiv 1911.03894): RoBERTa.
return {
  name = "camembert",
  model_types = { "camembert" },
  base = "roberta",
  class = "Camembert",
}
