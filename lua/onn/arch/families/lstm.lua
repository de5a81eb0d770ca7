-- nn.LSTM under torch.nn's names.
return { base = "rnn", name = "lstm", model_types = { "lstm" }, cell = "lstm" }
