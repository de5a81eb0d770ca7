-- MiniCPM 3: latent attention with plain rotation, scaled embeddings, residuals and logits.
local sizes = require "onn.arch.sizes"

return {
  name = "minicpm3",
  model_types = { "minicpm3" },
  base = "llama",
  config = { q_rank = "q_lora_rank", kv_rank = "kv_lora_rank", nope_size = "qk_nope_head_dim", rope_size = "qk_rope_head_dim",
    value_size = "v_head_dim", embed_scale = "scale_emb", depth_scale = "scale_depth", base_width = "dim_model_base", head_size = "none" },
  defaults = { eps = 1e-5, kv_rank = 256, nope_size = 64, rope_size = 32, embed_scale = 12, tied = true },
  absent = { q_lora_rank = 768, scale_depth = 1.4, dim_model_base = 256 },
  bias = function(c) return { a = c.attention_bias, o = c.attention_bias } end,
  derive = function(c)
    c.value_size = c.value_size or c.width / c.heads
    c.head_size = c.nope_size + c.rope_size
    c.residual_scale = c.depth_scale and c.depth_scale / math.sqrt(c.layers)
    c.logits_scale = c.base_width and c.base_width / c.width
    c.latent_eps = 1e-6
    c.mixers = sizes.each_layer(c, function() return "latent_attention" end)
  end,
  names = {
    q = "self_attn.q_proj", q_a = "self_attn.q_a_proj", q_a_norm = "self_attn.q_a_layernorm", q_b = "self_attn.q_b_proj",
    kv_a = "self_attn.kv_a_proj_with_mqa", kv_a_norm = "self_attn.kv_a_layernorm", kv_b = "self_attn.kv_b_proj",
  },
}
