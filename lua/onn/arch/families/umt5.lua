-- umT5 (arXiv 2304.09151): mT5 with numbers for distances in each block.
return {
  name = "umt5",
  model_types = { "umt5" },
  base = "mt5",
  relative = "each",
}
