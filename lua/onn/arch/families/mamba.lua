-- Mamba: selective state spaces of single channels.
return {
  name = "mamba",
  model_types = { "mamba" },
  net = "state_space",
  mixer = "channels",
  config = {
    width = "hidden_size", inner = "intermediate_size", expand = "expand", layers = "num_hidden_layers", states = "state_size",
    conv = "conv_kernel", rank = "time_step_rank", eps = "layer_norm_epsilon", vocabulary = "vocab_size", tied = "tie_word_embeddings",
    bias = "use_bias", conv_bias = "use_conv_bias", activation = "hidden_act",
  },
  defaults = { eps = 1e-5, activation = "silu", conv = 4, states = 16, expand = 2, bias = false, conv_bias = true, tied = true },
  names = { embed = "backbone.embeddings", final_norm = "backbone.norm_f", head = "lm_head", block = "backbone.layers.%d", norm = "norm",
    mixer = "mixer" },
}
