-- OLMo: llama with layer norms that have no parameters, and queries, keys and values that may be clipped.
return {
  name = "olmo",
  model_types = { "olmo" },
  base = "llama",
  config = { clip_qkv = "clip_qkv" },
  norm = "layer",
  derive = function(c) c.norm_plain, c.eps = true, 1e-5 end,
}
