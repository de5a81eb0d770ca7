-- Mamba 2: heads of channels that share one decay, b and c in groups, and a norm after the gate.
return {
  name = "mamba2",
  model_types = { "mamba2" },
  net = "state_space",
  mixer = "heads",
  config = {
    width = "hidden_size", expand = "expand", layers = "num_hidden_layers", states = "state_size", conv = "conv_kernel", heads = "num_heads",
    head_size = "head_dim", groups = "n_groups", eps = "layer_norm_epsilon", vocabulary = "vocab_size", tied = "tie_word_embeddings",
    bias = "use_bias", conv_bias = "use_conv_bias", activation = "hidden_act",
  },
  defaults = { eps = 1e-5, activation = "silu", conv = 4, states = 128, expand = 2, heads = 128, head_size = 64, groups = 8, bias = false,
    conv_bias = true, tied = false },
  names = { embed = "backbone.embeddings", final_norm = "backbone.norm_f", head = "lm_head", block = "backbone.layers.%d", norm = "norm",
    mixer = "mixer" },
}
