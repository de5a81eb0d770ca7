-- Settings found by `onn optimize` (universal_config.json) or by its forerunner (optimal_config.json), for the recipes that run
-- models. What the command line says wins. Execution settings that belong to one batch and length are taken for those only.
local cli = require "onn.cli"
local files = require "onn.files"
local json = require "onn.core.json"
local layers = require "onn.layers"
local system = require "onn.core.system"

local settings = {}

settings.file, settings.legacy_file = "universal_config.json", "optimal_config.json"

local dtypes = { f32 = "f32", float32 = "f32", bf16 = "bf16", bfloat16 = "bf16" }

local function directory_of(model_path)
  if not model_path then return nil end
  local found = files.resolve(model_path)
  return found and (system.isdir(found) and found or found:match "^(.*)/[^/]*$" or ".")
end

-- The file that settings come from: --config's, or the first there is. Returns path, asked (whether the user named it).
local function find(opt, directory)
  if opt.config then return opt.config, true end
  for _, name in ipairs { settings.file, settings.legacy_file } do
    for _, place in ipairs { directory or ".", "." } do
      local path = place == "." and name or place .. "/" .. name
      if system.exists(path) then return path, false end
    end
  end
end

local function wrong(path, key, expected, found)
  local shown = type(found) == "table" and "a list or object" or tostring(found)
  cli.fail(("%s: '%s' should be %s, found %s"):format(path, key, expected, shown))
end

local function object(path, value, key)
  if value == nil or value == json.null then return {} end
  if type(value) ~= "table" or getmetatable(value) == json.array then wrong(path, key, "an object", value) end
  return value
end

local function natural(path, values, key)
  local value = values[key]
  if value == nil or value == json.null then return nil end
  if type(value) ~= "number" or value < 1 or value ~= math.floor(value) or value > 2 ^ 31 then
    wrong(path, "config." .. key, "a positive integer", value)
  end
  return value
end

local function truth(path, values, key)
  local value = values[key]
  if value == nil or value == json.null then return nil end
  if type(value) ~= "boolean" then wrong(path, "config." .. key, "true or false", value) end
  return value
end

-- A list of 0-based blocks as --layers takes it; nil for none or all of `count`.
local function block_list(path, list, count)
  if list == nil or list == json.null then return nil end
  if type(list) ~= "table" then wrong(path, "config.active_layers", "a list of layer numbers", list) end
  local set, n, highest = {}, 0, -1
  for _, index in ipairs(list) do
    if type(index) ~= "number" or index < 0 or index ~= math.floor(index) then
      wrong(path, "config.active_layers", "a list of layer numbers", index)
    end
    if not set[index] then set[index], n, highest = true, n + 1, math.max(highest, index) end
  end
  if n == 0 or (count and n == count and highest == count - 1) then return nil end
  return layers.text(set, highest + 1)
end

-- The three objects of a settings file, the legacy form included, or fails with one line.
function settings.read(path)
  local whole = cli.check(files.read_json(path))
  whole = object(path, whole, "the file")
  if whole.optimal_config ~= nil then
    local old = object(path, whole.optimal_config, "optimal_config")
    return { architecture = {}, hardware = {}, config = { chunk_size = old.chunk_size, active_layers = old.sparse_layers,
      batch_size = old.batch_size } }
  end
  return { architecture = object(path, whole.architecture, "architecture"), hardware = object(path, whole.hardware, "hardware"),
    config = object(path, whole.config, "config") }
end

-- How many blocks the model itself has, where its config.json says so.
local function blocks_of(directory)
  local config = directory and files.read_json(directory .. "/config.json")
  if type(config) ~= "table" then return nil end
  local count = config.num_hidden_layers or config.n_layer
  return type(count) == "number" and count or nil
end

-- Puts the settings for the model at `model_path` into opt, as far as the command line (opt._given) left them open:
-- batch, seq_len, micro_batch, recompute, chunk, layers, threads, dtype; with `only` {key = true} those alone. Returns the file they
-- came from, or nil.
function settings.apply(opt, model_path, only)
  local directory = directory_of(model_path)
  local path, asked = find(opt, directory)
  if not path then return nil end
  local whole = settings.read(path)
  local c, given, taken = whole.config, opt._given or {}, {}
  local have, meant = blocks_of(directory), whole.architecture.num_layers
  if have and type(meant) == "number" and have ~= meant then
    local message = ("%s is for a model of %d layers, %s has %d"):format(path, meant, model_path, have)
    if asked then cli.fail(message) end
    if opt.quiet == false then cli.note("settings  %s: not used", message) end
    return nil
  end
  local function take(key, value)
    if value == nil or given[key] or (only and not only[key]) then return end
    opt[key] = value
    taken[#taken + 1] = ("%s %s"):format(key:gsub("_", "-"), tostring(value))
  end
  local batch, seq_len = natural(path, c, "batch_size"), natural(path, c, "seq_len")
  take("batch", batch)
  take("seq_len", seq_len)
  local micro, recompute = natural(path, c, "micro_batch"), truth(path, c, "gradient_checkpointing")
  if (not batch or opt.batch == batch) and (not seq_len or opt.seq_len == seq_len) then
    take("micro_batch", micro)
    if recompute then take("recompute", "on") end
  end
  take("chunk", natural(path, c, "chunk_size"))
  take("layers", block_list(path, c.active_layers, have or meant))
  local threads = natural(path, c, "threads")
  if threads then take("threads", math.min(threads, system.cpu_count())) end
  if c.compute_dtype ~= nil and c.compute_dtype ~= json.null then
    local dtype = dtypes[c.compute_dtype]
    if not dtype then wrong(path, "config.compute_dtype", "f32 or bf16", c.compute_dtype) end
    take("dtype", dtype)
  end
  if opt.quiet == false and #taken > 0 then cli.note("settings  %s: %s", path, table.concat(taken, ", ")) end
  return path
end

return settings
