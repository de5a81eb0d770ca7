-- Falcon Mamba: mamba with a norm, without weights, on each of dt, b and c.
return {
  name = "falcon_mamba",
  model_types = { "falcon_mamba" },
  base = "mamba",
  inner_norm = true,
  config = { norm_eps = "mixer_rms_eps" },
  defaults = { norm_eps = 1e-6 },
}
