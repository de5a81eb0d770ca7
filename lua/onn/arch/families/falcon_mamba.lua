-- Falcon Mamba: mamba with a norm, without weights, on each of dt, b and c.
local mamba = require "onn.arch.families.mamba"

local config = { norm_eps = "mixer_rms_eps" }
for key, name in pairs(mamba.ssm.config) do config[key] = name end
local defaults = { norm_eps = 1e-6 }
for key, value in pairs(mamba.ssm.defaults) do defaults[key] = value end

return { name = "falcon_mamba", model_types = { "falcon_mamba" }, base = "mamba",
  ssm = { kind = "mamba", inner_norm = "plain", config = config, defaults = defaults } }
