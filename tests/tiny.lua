-- A small llama with random weights, for specs that need a model directory.
local fresh = require "onn.fresh"
local system = require "onn.core.system"

local tiny = {}

-- Writes a model into `directory` (made if need be); changes: keys of its config that differ. Returns the directory.
function tiny.model(directory, changes)
  local config = { model_type = "llama", vocab_size = 96, hidden_size = 32, intermediate_size = 48, num_hidden_layers = 3,
    num_attention_heads = 4, num_key_value_heads = 2, max_position_embeddings = 64, rms_norm_eps = 1e-5, rope_theta = 10000,
    hidden_act = "silu", tie_word_embeddings = true }
  for key, value in pairs(changes or {}) do config[key] = value end
  assert(system.mkdir_p(directory))
  assert(fresh.weights(directory, config, 1))
  return directory
end

return tiny
