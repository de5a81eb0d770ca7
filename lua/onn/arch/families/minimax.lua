-- MiniMax-Text: lightning attention in most layers, experts in all; what the norms give, and not what goes into them, is the residual stream.
local base = require "onn.arch.families.mixtral"
local sizes = require "onn.arch.sizes"

return {
  name = "minimax",
  model_types = { "minimax" },
  base = "mixtral",
  config = {
    full_alpha = "full_attn_alpha_factor", full_beta = "full_attn_beta_factor", linear_alpha = "linear_attn_alpha_factor",
    linear_beta = "linear_attn_beta_factor", mlp_alpha = "mlp_alpha_factor", mlp_beta = "mlp_beta_factor",
  },
  defaults = { full_alpha = 1, full_beta = 1, linear_alpha = 1, linear_beta = 1, mlp_alpha = 1, mlp_beta = 1 },
  window = function(c) return c.window_size end,
  derive = function(c, wrong, config)
    base.derive(c)
    local _ = config.block_size -- of the reference's loop
    if not c.layer_types then
      c.layer_types = {}
      for layer = 1, c.layers do c.layer_types[layer] = layer % 2 == 1 and "full_attention" or "linear_attention" end
    end
    c.mixers = sizes.mixers(c, { linear_attention = "lightning" }, wrong)
    c.normed_stream = true
    c.join_scales = sizes.each_layer(c, function(layer)
      local full = c.mixers[layer] == "attention"
      return { norm1 = { full and c.full_alpha or c.linear_alpha, full and c.full_beta or c.linear_beta }, norm2 = { c.mlp_alpha, c.mlp_beta } }
    end)
  end,
  names = { lightning_qkv = "self_attn.qkv_proj", lightning_gate = "self_attn.output_gate", lightning_out = "self_attn.out_proj",
    lightning_norm = "self_attn.norm" },
}
