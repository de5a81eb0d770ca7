-- GPT-2: learned positions, layer norms, weights stored (in, out), q, k, v in one; a plain feed-forward part.
local sizes = require "onn.arch.sizes"

return {
  name = "gpt2",
  model_types = { "gpt2", "gpt-sw3" },
  prefix = "transformer.", -- may be absent
  config = {
    width = "n_embd", inner = "n_inner", layers = "n_layer", heads = "n_head", vocabulary = "vocab_size", positions = "n_positions",
    eps = "layer_norm_epsilon", activation = "activation_function", tied = "tie_word_embeddings", scale_by_size = "scale_attn_weights",
    scale_by_layer = "scale_attn_by_inverse_layer_idx",
  },
  defaults = { inner = function(c) return 4 * c.width end, positions = 1024, eps = 1e-5, activation = "gelu_new", tied = true,
    scale_by_size = true },
  only = { add_cross_attention = false },
  norm = "layer", gated = false,
  bias = function() return { q = true, o = true, up = true, down = true } end,
  derive = function(c)
    c.qkv, c.learned_positions, c.transposed = "rows", true, true
    c.scales = sizes.each_layer(c, function(layer)
      return (c.scale_by_size and c.head_size ^ -0.5 or 1) / (c.scale_by_layer and layer + 1 or 1)
    end)
  end,
  names = {
    embed = "transformer.wte", position = "transformer.wpe", final_norm = "transformer.ln_f", head = "lm_head", block = "transformer.h.%d",
    norm1 = "ln_1", norm2 = "ln_2", qkv = "attn.c_attn", o = "attn.c_proj", up = "mlp.c_fc", down = "mlp.c_proj",
  },
}
