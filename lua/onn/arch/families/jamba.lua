-- Jamba: mamba's mixer with a norm on each of dt, b and c, attention without positions in every so many layers, experts in others.
local selective = require "onn.arch.selective"
local sizes = require "onn.arch.sizes"

local ssm = {
  kind = "mamba", inner_norm = "weighted",
  config = { expand = "mamba_expand", states = "mamba_d_state", conv = "mamba_d_conv", rank = "mamba_dt_rank", bias = "mamba_proj_bias",
    conv_bias = "mamba_conv_bias", activation = "hidden_act", norm_eps = "rms_norm_eps" },
  defaults = { expand = 2, states = 16, conv = 4, bias = false, conv_bias = true, activation = "silu", norm_eps = 1e-6 },
}

return {
  name = "jamba",
  model_types = { "jamba" },
  base = "llama",
  config = { attention_interval = "attn_layer_period", attention_offset = "attn_layer_offset", moe_interval = "expert_layer_period",
    moe_offset = "expert_layer_offset", experts = { "num_experts", "num_local_experts" }, experts_per_token = "num_experts_per_tok" },
  defaults = { kv_heads = 8, attention_interval = 8, attention_offset = 4, moe_interval = 2, moe_offset = 1, experts = 16,
    experts_per_token = 2, tied = false, positions = 262144 },
  derive = function(c, wrong, config)
    c.position_type = "none"
    c.ssm = selective.describe(config, ssm, c.width, wrong)
    c.mixers = sizes.each_layer(c, function(layer)
      return layer % c.attention_interval == c.attention_offset and "attention" or "mamba"
    end)
    c.moe = { experts = c.experts, per_token = c.experts_per_token, inner = c.inner, score = "softmax", normalize = false }
    c.feeds = sizes.each_layer(c, function(layer)
      return c.experts > 1 and layer % c.moe_interval == c.moe_offset and "moe" or "mlp"
    end)
  end,
  names = { final_norm = "model.final_layernorm", norm2 = "pre_ff_layernorm", mamba = "mamba", gate = "feed_forward.gate_proj",
    up = "feed_forward.up_proj", down = "feed_forward.down_proj", router = "feed_forward.router", expert = "feed_forward.experts.%d.",
    expert_gate = "gate_proj", expert_up = "up_proj", expert_down = "down_proj" },
}
