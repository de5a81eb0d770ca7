-- What a model directory needs before its first update: config, tokenizer, first weights. It is made under another name and
-- takes its own when it is whole.
local arch = require "onn.arch"
local bpe_train = require "onn.bpe_train"
local characters = require "onn.characters"
local core = require "onn.core.ops"
local files = require "onn.files"
local json = require "onn.core.json"
local legacy = require "onn.legacy_tokenizer"
local scope = require "onn.scope"
local stores = require "onn.core.store"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"
local Tokenizer = require "onn.tokenizer"
local units = require "onn.units"

local fresh = {}

local tokenizer_files = { "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja" }

-- text: the JSON itself, config.json's path, or a directory with one. A missing vocab_size becomes `vocabulary`.
-- Returns the config of an architecture that can be trained, and what its data are ("images", or nil: text); or nil, message, code.
function fresh.config(text, vocabulary)
  local config, message, code
  if text:find "^%s*{" then
    config, message, code = json.decode(text, "CONFIG")
  else
    local stat = system.stat(text)
    config, message, code = files.read_json(stat and stat.kind == "directory" and text .. "/config.json" or text)
  end
  if not config then return nil, message, code end
  local described, wrong = arch.describe(config)
  if not described or described.net.data ~= "images" then
    config.vocab_size = config.vocab_size or vocabulary
    described, wrong = arch.describe(config)
  end
  if not described then return nil, table.concat(wrong, "; "), "format" end
  if described.net.data == "images" then return config, described.net.data end
  -- What CONFIG left to the family's defaults is written down: other readers' defaults may differ.
  for key, name in pairs(described.family.config) do
    if config[name] == nil then config[name] = described.sizes[key] end
  end
  if config.tie_word_embeddings == nil then config.tie_word_embeddings = false end
  if described.sizes.rope and not config.rope_parameters and config.rope_theta == nil then config.rope_theta = described.sizes.rope.theta end
  return config
end

local guards = {} -- live until the program ends, however it ends

-- A new empty directory beside `out`. What is still in it when the program ends is removed.
function fresh.directory(out)
  local part = out:gsub("/+$", "") .. ".part"
  system.remove_tree(part)
  local ok, message, code = system.mkdir_p(part)
  if not ok then return nil, message, code end
  local guard = newproxy(true)
  getmetatable(guard).__gc = function() system.remove_tree(part) end
  guards[#guards + 1] = guard
  return part
end

-- Every text in a JSON value, in a list.
local function strings(value, list)
  if type(value) == "string" then
    list[#list + 1] = value
  elseif type(value) == "table" then
    local keys = {}
    for key in pairs(value) do keys[#keys + 1] = key end
    table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
    for _, key in ipairs(keys) do strings(value[key], list) end
  end
  return list
end

-- The texts of a data file, for training a tokenizer: all strings of JSON lines or of a JSON document, or the whole file.
local function texts_of(path)
  local text, message, code = system.read_file(path)
  if not text then return nil, message, code end
  if text:find("\0", 1, true) then return nil, path .. " is neither text nor JSON: it holds NUL bytes", "format" end
  local list, value = {}
  if path:find "%.json$" then
    value, message, code = json.decode(text, path)
    if value == nil then return nil, message, code end
    return strings(value, list)
  elseif not path:find "%.jsonl$" then
    return { text }
  end
  for line in text:gmatch "[^\r\n]+" do
    if line:find "%S" then
      value, message, code = json.decode(line, path)
      if value == nil then return nil, message, code end
      strings(value, list)
    end
  end
  return list
end

-- Files from before tokenizer.json are written as one, and the special tokens that their family implies as a special_tokens_map.json.
local function copy_tokenizer(from, directory)
  local ok, message, code, roles
  for _, name in ipairs(tokenizer_files) do
    local text
    if roles and name == "special_tokens_map.json" then
      text = json.encode(roles)
    else
      text, message, code = system.read_file(from .. "/" .. name)
    end
    if not text and name == "tokenizer.json" and system.isdir(from) then
      local names
      text, names, code = legacy.read(from, files.read_json(from .. "/tokenizer_config.json") or {})
      if not text then return nil, names, code end
      roles = {}
      for role, token in pairs(names) do roles[role .. "_token"] = token end
    end
    if text then ok, message, code = system.write_file(directory .. "/" .. name, text) end
    if not text and name == "tokenizer.json" or text and not ok then return nil, message, code end
  end
  return true
end

-- Puts a tokenizer into `directory`: opt.tokenizer's, or one trained on the file opt.data with at most opt.vocabulary
-- tokens (opt.characters: single characters).
-- Sets the config's vocab_size and end token to what it has. Returns true, or nil, message, code.
function fresh.tokenizer(directory, config, opt)
  local ok, message, code
  if opt.tokenizer then
    ok, message, code = copy_tokenizer(opt.tokenizer, directory)
  else
    local texts
    texts, message, code = texts_of(opt.data)
    if not texts then return nil, message, code end
    if opt.characters then
      local known = characters.vocabulary(texts, opt.vocabulary)
      config.vocab_size = #known
      ok, message, code = characters.write(directory, known)
    else
      local trained = bpe_train.train(texts, { vocabulary = opt.vocabulary })
      config.vocab_size = #trained.tokens
      ok, message, code = bpe_train.write(directory, trained, config.max_position_embeddings)
    end
  end
  if not ok then return nil, message, code end
  local tokenizer
  tokenizer, message, code = Tokenizer.open(directory)
  if not tokenizer then return nil, message, code end
  if tokenizer.size > config.vocab_size then
    return nil, ("the tokenizer has %d tokens, the config's vocab_size is %d"):format(tokenizer.size, config.vocab_size), "format"
  end
  -- null says there is none: left out, some readers take the ids of the family's first tokenizer
  config.bos_token_id, config.eos_token_id = tokenizer.bos_id or json.null, tokenizer.eos_id or json.null
  local pad = config.pad_token_id
  config.pad_token_id = type(pad) == "number" and pad < config.vocab_size and pad or json.null
  return true
end

local residual = { o = true, down = true, out_proj = true }

-- Matrices are normal with the config's initializer_range, norms 1, biases 0. The products that end in the residual stream are
-- smaller by sqrt(2 layers), so that their sum over all layers keeps one layer's size. Numbers depend on the seed and the name only.
local function first_value(t, deviation, seed)
  local w = tensors.new("f32", t.shape)
  if t.role:find "_bias$" then return w:fill(0) end
  if t.vector then return w:fill(1) end
  return core.normal(w, seed, "init/" .. t.name, 0, deviation)
end

-- Writes config.json, generation_config.json and the first model.safetensors. Returns true, or nil, message, code.
function fresh.weights(directory, config, seed)
  local described, wrong = arch.describe(config)
  if not described then return nil, table.concat(wrong, "; "), "format" end
  local range = described.config.initializer_range or 0.02
  local needed, memory = 0, tensors.memory()
  for _, stage in ipairs(described.stages) do
    for _, t in ipairs(stage.tensors) do
      local count = 4
      for _, size in ipairs(t.shape) do count = count * size end
      needed = needed + count
    end
  end
  if memory.used + needed > memory.budget then
    return nil, ("the new model's weights alone are %s, the budget is %s"):format(units.bytes(needed), units.bytes(memory.budget))
  end
  config.dtype, config.torch_dtype = "float32", "float32"
  local images = described.net.data == "images"
  local generation = { bos_token_id = config.bos_token_id, eos_token_id = config.eos_token_id }
  local ok, message, code = system.write_file(directory .. "/config.json", json.encode(config, { pretty = true }) .. "\n")
  local text = json.encode(generation, { pretty = true }) .. "\n"
  if ok and not images then ok, message, code = system.write_file(directory .. "/generation_config.json", text) end
  if not ok then return nil, message, code end
  return scope(function()
    local values = {}
    for _, stage in ipairs(described.stages) do
      for _, t in ipairs(stage.tensors) do
        local own = described.net.first_value and described.net.first_value(described.sizes, t, seed)
        values[t.name] = own or first_value(t, residual[t.role] and range / math.sqrt(2 * described.sizes.layers) or range, seed)
      end
    end
    return stores.write(directory .. "/model.safetensors", values, { format = "pt" })
  end)
end

-- Gives the directory `part` the name `out`; if that is there, its files take their places in it and others stay.
function fresh.finish(part, out)
  if not system.exists(out) then return system.rename(part, out) end
  for _, name in ipairs(system.list(part)) do
    local ok, message, code = system.rename(part .. "/" .. name, out .. "/" .. name)
    if not ok then return nil, message, code end
  end
  os.remove(out .. "/model.safetensors.index.json")
  return system.remove_tree(part)
end

return fresh
