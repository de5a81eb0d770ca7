-- VaultGemma: gemma 2 without norms on the parts' outputs.
return { name = "vaultgemma", model_types = { "vaultgemma" }, base = "gemma2", names = { norm1_out = false, norm2_out = false } }
