-- nn.GRU under torch.nn's names.
return { base = "rnn", name = "gru", model_types = { "gru" }, cell = "gru" }
