-- Arcee: llama with a plain feed-forward part of squared ReLUs.
return { name = "arcee", model_types = { "arcee" }, base = "llama", defaults = { activation = "relu2", eps = 1e-5 }, gated = false }
