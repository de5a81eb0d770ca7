-- Nomic's BERT (arXiv 2402.01613): turned queries and keys instead of places, and a gated inner layer.
return {
  name = "nomic_bert",
  model_types = { "nomic_bert" },
  base = "bert",
  config = { head_size = "head_dim" },
  defaults = { activation = "silu" },
  body = "nomic_bert",
  ropes = function(config) return { full = config } end,
  names = { place = false, embed_norm = "emb_ln", block = "encoder.layers.%d" },
  inside = { qkv = "attn.Wqkv", o = "attn.out_proj", norm1 = "norm1", up = "mlp.fc11", gate = "mlp.fc12", down = "mlp.fc2", norm2 = "norm2" },
  bias = function() return { qkv = false, o = false, up = false, gate = false, down = false } end,
  heads = {
    masked = { dense = "cls.predictions.transform.dense", norm = "cls.predictions.transform.layer_norm", decoder = "cls.predictions.decoder",
      bias = { "cls.predictions.bias", "cls.predictions.decoder.bias" } },
    classes = { dense = "pooler.dense", inside = true, activation = "tanh", out = "classifier", save = { "pooler", "classifier" } },
    tokens = { out = "classifier", save = { "classifier" } },
  },
  class = "NomicBert",
}
