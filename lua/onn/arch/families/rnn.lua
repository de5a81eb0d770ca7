-- Elman's network under torch.nn's names: an embedding, a stacked nn.RNN, a linear head. LSTM and GRU build on it.
return {
  name = "rnn", net = "recurrent", model_types = { "rnn" }, cell = "rnn",
  config = {
    vocabulary = "vocab_size", embedding = "embedding_size", hidden = "hidden_size", layers = "num_layers", bidirectional = "bidirectional",
    projection = "proj_size", nonlinearity = "nonlinearity", bias = "bias", dropout = "dropout", range = "initializer_range",
  },
  defaults = { layers = 1, bidirectional = false, projection = 0, nonlinearity = "tanh", bias = true, dropout = 0 },
  names = { embed = "embedding", layers = "rnn", head = "linear" },
}
