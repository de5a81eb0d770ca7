-- LFM3: lfm2 with windowed attention too, a gate for each head, norms on outputs, and rotary angles for each kind of attention.
local sizes = require "onn.arch.sizes"

return {
  name = "lfm3",
  model_types = { "lfm3" },
  base = "lfm2",
  config = { inner = "intermediate_size", heads = "num_attention_heads", adjust = false, inner_factor = false, inner_step = false,
    attention_layers = false, use_gate = "use_attention_gate", use_sandwich = "use_sandwich_norm" },
  defaults = { conv = 7, kv_heads = 4, head_size = 128, window_size = 256, use_gate = true, use_sandwich = true },
  absent = {},
  only = {},
  aliases = { block = "model.layers.%d", output_gate = "self_attn.g_proj" },
  bias = function(c) return { q = c.attention_bias, k = c.attention_bias, v = c.attention_bias, o = c.attention_bias } end,
  derive = function(c, wrong, config)
    c.qk_norm = "head"
    if c.use_gate then c.output_gate, c.gate_per_head = "sigmoid", true end
    if not c.use_sandwich then c.names.norm1_out, c.names.norm2_out = nil, nil end
    if not c.layer_types then
      c.layer_types = {}
      for layer = 0, c.layers - 1 do
        c.layer_types[layer + 1] = layer % 4 == 2 and "full_attention" or layer % 4 == 0 and layer > 0 and "sliding_attention" or "conv"
      end
    end
    c.mixers = sizes.mixers(c, { conv = "short_conv" }, wrong)
    local given = config.rope_parameters
    if type(given) ~= "table" or type(given.full_attention) ~= "table" then
      wrong[#wrong + 1] = "'rope_parameters' should say the angles of 'full_attention' and 'sliding_attention'"
    end
  end,
  names = { norm1_out = "post_operator_norm", norm2_out = "post_ffn_norm", o = "self_attn.o_proj", q_norm = "self_attn.q_norm",
    k_norm = "self_attn.k_norm", output_gate = "self_attn.gate_proj" },
}
