-- DiffLlama: llama with differential attention.
local sizes = require "onn.arch.sizes"

return {
  name = "diffllama",
  model_types = { "diffllama" },
  base = "llama",
  defaults = { eps = 1e-5 },
  only = { lambda_std_dev = function() return true end }, -- of first values
  derive = function(c, wrong)
    if c.kv_heads % 2 ~= 0 then wrong[#wrong + 1] = ("'num_key_value_heads' %d should be even for diffllama"):format(c.kv_heads) end
    c.mixers = sizes.each_layer(c, function() return "difference_attention" end)
  end,
  names = { lambda_q1 = "self_attn.lambda_q1", lambda_k1 = "self_attn.lambda_k1", lambda_q2 = "self_attn.lambda_q2",
    lambda_k2 = "self_attn.lambda_k2" },
}
