-- Falcon-H1: attention and mamba 2's mixer side by side in every block, and factors nearly everywhere.
local bamba = require "onn.arch.families.bamba"
local selective = require "onn.arch.selective"
local sizes = require "onn.arch.sizes"

-- The list of `count` numbers under `key`, ones if it is not there.
local function factors(config, key, count, wrong)
  local list, out = config[key], {}
  for k = 1, count do
    out[k] = list == nil and 1 or type(list) == "table" and list[k] or nil
    if type(out[k]) ~= "number" then
      wrong[#wrong + 1] = ("'%s' should be %d numbers"):format(key, count)
      return
    end
  end
  return out
end

return {
  name = "falcon_h1",
  model_types = { "falcon_h1" },
  base = "bamba",
  config = {
    attention_layers = false, rotary_share = false, embed_scale = "embedding_multiplier", logits_scale = "lm_head_multiplier",
    key_scale = "key_multiplier", attention_in = "attention_in_multiplier", attention_out = "attention_out_multiplier",
    mamba_in = "ssm_in_multiplier", mamba_out = "ssm_out_multiplier", gate_norm = "mamba_rms_norm", norm_before_gate = "mamba_norm_before_gate",
  },
  defaults = { rotary_share = false, key_scale = 1, attention_in = 1, attention_out = 1, mamba_in = 1, mamba_out = 1, gate_norm = false,
    norm_before_gate = true, positions = 8192 },
  absent = { mamba_d_ssm = 1024, projectors_bias = false },
  derive = function(c, wrong, config)
    c.rotary_share = nil
    c.ssm = selective.describe(config, bamba.ssm, c.width, wrong)
    c.ssm.gate_norm = c.gate_norm and (c.norm_before_gate and "before" or "after")
    c.ssm.multipliers = factors(config, "ssm_multipliers", 5, wrong)
    local mlp = factors(config, "mlp_multipliers", 2, wrong)
    if #wrong > 0 then return end
    c.gate_scale, c.down_scale = mlp[1], mlp[2]
    c.scale = c.key_scale / math.sqrt(c.head_size)
    c.beside = { attention_in = c.attention_in, attention_out = c.attention_out, mamba_in = c.mamba_in, mamba_out = c.mamba_out }
    c.mixers = sizes.each_layer(c, function() return "attention_and_mamba2" end)
  end,
}
