-- HyperCLOVA X: granite whose logits are multiplied, with norms on the parts' outputs if the config says so.
return {
  name = "hyperclovax",
  model_types = { "hyperclovax" },
  base = "granite",
  config = { logits_scale = "logits_scaling", logits_divisor = "none", post_norm = "use_post_norm" },
  defaults = { scale = function(c) return (c.head_size or c.width / c.heads) ^ -0.5 end, post_norm = true },
  derive = function(c)
    if not c.post_norm then c.names.norm1_out, c.names.norm2_out = nil, nil end
  end,
  names = { norm1_out = "post_norm1", norm2_out = "post_norm2" },
}
