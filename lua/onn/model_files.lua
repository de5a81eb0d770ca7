-- Writing a model directory: weights that changed, the others as the model's store has them, its config, its tokenizer.
local files = require "onn.files"
local json = require "onn.core.json"
local stores = require "onn.core.store"
local system = require "onn.core.system"

local model_files = {}

local copied = { "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
  "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model" }

local config_names = { f32 = "float32", bf16 = "bfloat16", f16 = "float16" }

-- values: {name = tensor}; what is missing in it is read from the store, in `dtype` (as stored if nil). Existing files are replaced.
-- Returns true, or nil, message, code.
function model_files.write(model, directory, values, dtype)
  local all, read = {}, {}
  local function finish(...)
    for _, t in ipairs(read) do t:free() end
    return ...
  end
  for name, t in pairs(values) do all[name] = t end
  for _, name in ipairs(model.store:names()) do
    if not all[name] then
      local t, message, code = model.store:read(name, dtype)
      if not t then return finish(nil, message, code) end
      all[name], read[#read + 1] = t, t
    end
  end
  local ok, message, code = system.mkdir_p(directory)
  if ok then ok, message, code = stores.write(directory .. "/model.safetensors", all, { format = "pt" }) end
  if not ok or directory == model.directory then return finish(ok, message, code) end
  os.remove(directory .. "/model.safetensors.index.json") -- of an older model in shards
  local config
  config, message, code = files.read_json(model.directory .. "/config.json")
  if not config then return finish(nil, message, code) end
  if dtype then config.dtype, config.torch_dtype = config_names[dtype], config_names[dtype] end
  ok, message, code = system.write_file(directory .. "/config.json", json.encode(config, { pretty = true }) .. "\n")
  for _, name in ipairs(copied) do
    local text = ok and system.read_file(model.directory .. "/" .. name)
    if text then ok, message, code = system.write_file(directory .. "/" .. name, text) end
  end
  return finish(ok, message, code)
end

return model_files
