-- Mamba 2: heads of channels that share one decay, b and c in groups, and a norm after the gate.
return {
  name = "mamba2",
  model_types = { "mamba2" },
  base = "mamba",
  defaults = { tied = false },
  ssm = {
    kind = "mamba2",
    config = { expand = "expand", states = "state_size", conv = "conv_kernel", heads = "num_heads", head_size = "head_dim", groups = "n_groups",
      bias = "use_bias", conv_bias = "use_conv_bias", activation = "hidden_act" },
    defaults = { activation = "silu", conv = 4, states = 128, expand = 2, heads = 128, head_size = 64, groups = 8, bias = false,
      conv_bias = true },
  },
}
