-- GLM 4: GLM with norms on the parts' outputs too.
return {
  name = "glm4",
  model_types = { "glm4" },
  base = "glm",
  defaults = { attention_bias = false },
  names = { norm1_out = "post_self_attn_layernorm", norm2_out = "post_mlp_layernorm" },
}
