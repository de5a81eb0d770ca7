-- EXAONE 3: llama under other names.
local llama = require "onn.arch.families.llama"

return {
  name = "exaone",
  model_types = { "exaone" },
  base = "llama",
  config = { layers = { "num_hidden_layers", "num_layers" }, eps = { "rms_norm_eps", "layer_norm_epsilon" },
    activation = { "hidden_act", "activation_function" } },
  defaults = { eps = 1e-5, kv_heads = 8, rope_theta = 500000 },
  names = {
    embed = "transformer.wte", final_norm = "transformer.ln_f", block = "transformer.h.%d", norm1 = "ln_1", norm2 = "ln_2",
    q = "attn.attention.q_proj", k = "attn.attention.k_proj", v = "attn.attention.v_proj", o = "attn.attention.out_proj",
    gate = "mlp.c_fc_0", up = "mlp.c_fc_1", down = "mlp.c_proj",
  },
  aliases = { block = llama.names.block, q = llama.names.q, k = llama.names.k, v = llama.names.v, o = llama.names.o, gate = llama.names.gate,
    up = llama.names.up, down = llama.names.down },
}
