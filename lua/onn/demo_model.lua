-- The small built-in model of the demo, for recipes that run without MODEL.
local files = require "onn.files"
local fresh = require "onn.fresh"
local profile = require "onn.profile"
local system = require "onn.core.system"

local demo_model = {}

demo_model.config = { model_type = "llama", architectures = { "LlamaForCausalLM" }, hidden_size = 128, intermediate_size = 384,
  num_hidden_layers = 4, num_attention_heads = 4, num_key_value_heads = 2, max_position_embeddings = 256, rms_norm_eps = 1e-5,
  rope_theta = 10000, hidden_act = "silu", tie_word_embeddings = true }

-- The directory of the model that `onn demo` pretrained, or else of one with random weights, made now: its speeds are the same.
-- Returns the directory and whether it is pretrained; or nil, message, code.
function demo_model.directory()
  local cache = profile.cache_directory()
  for _, name in ipairs(system.list(cache) or {}) do
    local model = ("%s/%s/model"):format(cache, name)
    if name:find "^demo%-%x+$" and files.read_json(model .. "/config.json") then return model, true end
  end
  local out = ("%s/random-%dx%d"):format(cache, demo_model.config.num_hidden_layers, demo_model.config.hidden_size)
  if system.exists(out .. "/model.safetensors") then return out, false end
  local config = {}
  for key, value in pairs(demo_model.config) do config[key] = value end
  config.vocab_size = 1024
  local part, ok, message, code
  part, message, code = fresh.directory(out)
  if not part then return nil, message, code end
  ok, message, code = fresh.weights(part, config, 0)
  if ok then ok, message, code = fresh.finish(part, out) end
  if not ok then return nil, message, code end
  return out, false
end

return demo_model
