-- Mamba: selective state spaces of single channels.
return {
  name = "mamba",
  model_types = { "mamba" },
  net = "state_space",
  config = { width = "hidden_size", layers = "num_hidden_layers", eps = "layer_norm_epsilon", vocabulary = "vocab_size",
    tied = "tie_word_embeddings" },
  defaults = { eps = 1e-5, tied = true },
  ssm = {
    kind = "mamba",
    config = { inner = "intermediate_size", expand = "expand", states = "state_size", conv = "conv_kernel", rank = "time_step_rank",
      bias = "use_bias", conv_bias = "use_conv_bias", activation = "hidden_act" },
    defaults = { activation = "silu", conv = 4, states = 16, expand = 2, bias = false, conv_bias = true },
  },
  names = { embed = "backbone.embeddings", final_norm = "backbone.norm_f", head = "lm_head", block = "backbone.layers.%d", norm1 = "norm",
    mamba = "mixer" },
}
