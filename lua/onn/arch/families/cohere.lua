-- Cohere: layer norms without bias, attention and feed-forward side by side after one norm, interleaved rotation, scaled logits.
-- Its second generation has windows, and rotates only where there is one.
local sizes = require "onn.arch.sizes"

return {
  name = "cohere",
  model_types = { "cohere", "cohere2" },
  base = "llama",
  config = { eps = "layer_norm_eps", logits_scale = "logit_scale", use_qk_norm = "use_qk_norm", window_pattern = "sliding_window_pattern" },
  defaults = { eps = 1e-5, logits_scale = 0.0625, tied = true, window_pattern = 4, positions = 8192 },
  norm = "layer",
  derive = function(c, _, config)
    c.norm_bias, c.parallel, c.interleaved = false, true, true
    if c.use_qk_norm then c.qk_norm = "distinct" end
    if config.model_type ~= "cohere2" then c.window_size = nil return end
    if not c.layer_types then
      c.layer_types = {}
      for layer = 1, c.layers do c.layer_types[layer] = layer % c.window_pattern ~= 0 and "sliding_attention" or "full_attention" end
    end
    c.rotated = sizes.each_layer(c, function(layer) return c.layer_types[layer + 1] == "sliding_attention" end)
  end,
  names = { norm2 = false, q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm" },
}
