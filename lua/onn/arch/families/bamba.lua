-- Bamba: mamba 2's mixer in most blocks, attention in those that the config lists.
local selective = require "onn.arch.selective"
local sizes = require "onn.arch.sizes"

local ssm = {
  kind = "mamba2",
  config = { inner = "mamba_d_ssm", expand = "mamba_expand", states = "mamba_d_state", conv = "mamba_d_conv", heads = "mamba_n_heads",
    head_size = "mamba_d_head", groups = "mamba_n_groups", bias = "mamba_proj_bias", out_bias = "projectors_bias",
    conv_bias = "mamba_conv_bias", activation = "hidden_act" },
  defaults = { expand = 2, states = 256, conv = 4, heads = 128, head_size = "auto", groups = 1, bias = false, conv_bias = true,
    activation = "silu" },
}

return {
  name = "bamba",
  model_types = { "bamba" },
  base = "llama",
  ssm = ssm,
  config = { attention_layers = "attn_layer_indices", rotary_share = "partial_rotary_factor" },
  defaults = { eps = 1e-5, kv_heads = 8, rotary_share = 0.5, tied = false, positions = 262144 },
  derive = function(c, wrong, config)
    c.ssm = selective.describe(config, ssm, c.width, wrong)
    local full = {}
    for _, layer in ipairs(c.attention_layers or {}) do full[layer] = true end
    c.mixers = sizes.each_layer(c, function(layer) return full[layer] and "attention" or "mamba2" end)
  end,
  names = { final_norm = "model.final_layernorm", norm2 = "pre_ff_layernorm", mamba = "mamba", gate = "feed_forward.gate_proj",
    up = "feed_forward.up_proj", down = "feed_forward.down_proj" },
}
