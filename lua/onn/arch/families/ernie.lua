-- ERNIE (arXiv 1904.09223), without its embedding of tasks: BERT.
return {
  name = "ernie",
  model_types = { "ernie" },
  base = "bert",
  fixed = { position_embedding_type = "absolute", is_decoder = false, add_cross_attention = false, use_task_id = false },
  body = "ernie",
  class = "Ernie",
}
