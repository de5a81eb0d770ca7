-- Writing a model directory: weights that changed, the others as the model's store has them, its config, its tokenizer.
local files = require "onn.files"
local json = require "onn.core.json"
local scope = require "onn.scope"
local stores = require "onn.core.store"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local model_files = {}

local copied = { "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
  "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model" }

local config_names = { f32 = "float32", bf16 = "bfloat16", f16 = "float16" }

local dtypes = { F32 = "f32", BF16 = "bf16", F16 = "f16", I8 = "i8", U8 = "u8", I32 = "i32", I64 = "i64", BOOL = "bool" }

local floating = { F32 = true, BF16 = true, F16 = true }

local PIECE = 2 ^ 26 -- bytes of working memory for rows that pass through it, at most

-- f(rows, first) for the rows of a stored tensor, as many at once as `each` bytes of an element allow; all of one that is no matrix.
-- Returns true, or nil, message, code.
local function pieces(store, name, each, f)
  local info, room = store:info(name), math.min(PIECE, tensors.memory().budget / 4)
  if #info.shape ~= 2 or info.bytes == 0 then
    local t, message, code = store:read(name)
    if not t then return nil, message, code end
    return scope(function() return f(t, 0) end)
  end
  local total, at_once = info.shape[1], math.max(1, math.floor(room / (each * info.shape[2])))
  for first = 0, total - 1, at_once do
    local ok, message, code = scope(function()
      local ids = {}
      for i = 1, math.min(at_once, total - first) do ids[i] = first + i - 1 end
      local rows, wrong, kind = store:read_rows(name, tensors.from_table(ids, "i32"))
      if not rows then return nil, wrong, kind end
      return f(rows, first)
    end)
    if not ok then return nil, message, code end
  end
  return true
end

-- Declares all tensors and puts them one after another. Returns true, or nil, message, code.
local function write_all(model, writer, values, dtype)
  local store, names, seen = model.store, {}, {}
  for _, name in ipairs(store:names()) do names[#names + 1], seen[name] = name, true end
  for name in pairs(values) do if not seen[name] then names[#names + 1] = name end end
  table.sort(names)
  local kinds = {}
  for _, name in ipairs(names) do
    local value, info = values[name], store:info(name)
    local given = tensors.is_tensor(value)
    kinds[name] = given and value:dtype() or floating[info.dtype] and dtype or dtypes[info.dtype] -- counters stay whole numbers
    if not kinds[name] then
      return nil, ("%s: tensor '%s' is %s, which is not computed with"):format(info.file, name, info.dtype), "unsupported"
    end
    local ok, message, code = writer:declare(name, kinds[name], given and value:shape() or info.shape)
    if not ok then return nil, message, code end
  end
  for _, name in ipairs(names) do
    local value, ok, message, code = values[name]
    if tensors.is_tensor(value) then ok, message, code = writer:put(value) else
      ok, message, code = pieces(store, name, value and 40 or 12, function(rows, first)
        local made, wrong, kind
        if value then made, wrong, kind = value(rows, first, kinds[name]) else made = rows:to(kinds[name]) end
        if not made then return nil, wrong, kind end
        return writer:put(made)
      end)
    end
    if not ok then return nil, message, code end
  end
  return writer:commit()
end

-- values: {name = tensor, or a function of some of the stored rows, the first one's number (from 0) and a dtype that gives the new
-- rows, or nil, message, code}; what is missing in it is read from the store, in `dtype` (as stored if nil). Rows pass a few at a time,
-- so a model need not fit in memory. A model that a
-- Lua file defines is written under its name, the file itself beside its weights. Existing files are replaced. Returns true, or nil, message, code.
function model_files.write(model, directory, values, dtype)
  local definition = model.net and model.net.custom and model.path:match "[^/]+$"
  local made = not system.exists(directory)
  local ok, message, code = system.mkdir_p(directory)
  if not ok then return nil, message, code end
  local writer
  local name = definition and definition:gsub("%.lua$", ".safetensors") or "model.safetensors"
  writer, message, code = stores.writer(directory .. "/" .. name, { format = "pt" })
  if not writer then return nil, message, code end
  ok, message, code = write_all(model, writer, values, dtype)
  writer:abort() -- no longer has a meaning where it has ended
  if not ok and made then os.remove(directory) end
  if not ok or directory == model.directory then return ok, message, code end
  if definition then return system.write_file(directory .. "/" .. definition, system.read_file(model.path)) end
  os.remove(directory .. "/model.safetensors.index.json") -- of an older model in shards
  local config
  config, message, code = files.read_json(model.directory .. "/config.json")
  if not config then return nil, message, code end
  if dtype then config.dtype, config.torch_dtype = config_names[dtype], config_names[dtype] end
  if model.classes then -- a classifier that was made anew here
    for _, key in ipairs { "architectures", "id2label", "label2id", "num_labels" } do config[key] = model.config[key] end
  end
  ok, message, code = system.write_file(directory .. "/config.json", json.encode(config, { pretty = true }) .. "\n")
  for _, file in ipairs(copied) do
    local text = ok and system.read_file(model.directory .. "/" .. file)
    if text then ok, message, code = system.write_file(directory .. "/" .. file, text) end
  end
  return ok, message, code
end

return model_files
