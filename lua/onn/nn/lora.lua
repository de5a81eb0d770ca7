-- LoRA (arXiv 2106.09685) with PEFT's conventions and files: y = W x + s B A x, s = alpha / r (rsLoRA: alpha / sqrt(r)),
-- A uniform in +-1/sqrt(in), B = 0, both kept in f32; the arithmetic reads bf16 copies where it runs in bf16.
local core = require "onn.core.ops"
local files = require "onn.files"
local json = require "onn.core.json"
local nearest = require "onn.nearest"
local regex = require "onn.core.regex"
local saved = require "onn.nn.saved"
local stores = require "onn.core.store"
local system = require "onn.core.system"
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"

local lora = {}

local PREFIX = "base_model.model."

local function sorted_keys(set)
  local list = {}
  for k in pairs(set) do list[#list + 1] = k end
  table.sort(list)
  return list
end

local function attach(model, layer, one)
  one.a, one.b = one.A, one.B
  if model.dtype == "bf16" then
    one.a, one.b = tensors.keep(one.A:to "bf16"), tensors.keep(one.B:to "bf16")
  end
  layer.adapter = one
end

-- The adapter's parameters for an optimizer, their gradient buffers made and registered.
function lora.parameters(adapter)
  local params = {}
  for _, one in ipairs(adapter.modules) do
    for _, part in ipairs { "A", "B" } do
      local used = one[part:lower()]
      local value = one[part]
      local gradient = tape.gradient(used) or tensors.keep(tensors.zeros("f32", value:shape()))
      tape.leaf(used, gradient)
      params[#params + 1] = { name = one.name .. "." .. part, value = value, gradients = { gradient },
        shadow = used ~= value and used or nil }
    end
  end
  return params
end

-- Is layer wanted by a list of targets: last name ("q_proj") or whole path? Experts are only by name.
local function targeted(name, targets, expert)
  if targets == "all-linear" then return not expert end
  for _, target in ipairs(targets) do
    if name == target or name:sub(-#target - 1) == "." .. target then return target end
  end
  return false
end

local function scale_of(alpha, rank, rslora) return alpha / (rslora and math.sqrt(rank) or rank) end

-- Targets as people give them, "all-linear", "q_proj,v_proj" or a list, checked against the model's layers; or nil, message.
local function read_targets(model, given)
  if given == "all-linear" then return given end
  local targets = given
  if type(given) == "string" then
    targets = {}
    for name in given:gmatch "[^,%s]+" do targets[#targets + 1] = name end
  end
  local known, seen = {}, {}
  for _, item in ipairs(model:linear_layers()) do
    local last = item.layer.name:match "[^.]+$"
    if not seen[last] then known[#known + 1], seen[last] = last, true end
  end
  for _, target in ipairs(targets) do
    local found = false
    for _, item in ipairs(model:linear_layers()) do found = found or targeted(item.layer.name, { target }) end
    if not found then
      return nil, ("targets: '%s' is no linear layer of this model%s (it has %s)"):format(target, nearest.hint(target, known),
        table.concat(known, ", "))
    end
  end
  if #targets == 0 then return nil, "targets: no layer is named" end
  return targets
end

-- Shapes of a layer's A and B. A convolution's A sees all of the input through the layer's window, its B a single pixel, in the layer's groups.
function lora.shapes(layer, rank)
  if not layer.conv then return { rank, layer.into }, { layer.out, rank } end
  return { rank, layer.into, layer.kernel, layer.kernel }, { layer.out, rank / layer.groups, 1, 1 }
end

-- Puts fresh adapters on a loaded model. opt: rank, alpha, dropout, targets ("all-linear", names separated by commas, or a list),
-- layers (set {[index]=true} or nil: all blocks), seed, rslora. Returns the adapter, or nil and a message when nothing matches.
function lora.create(model, opt)
  local targets, wrong = read_targets(model, opt.targets)
  if not targets then return nil, wrong, "argument" end
  local adapter = { rank = opt.rank, alpha = opt.alpha, dropout = opt.dropout or 0, rslora = opt.rslora or false, modules = {} }
  for _, item in ipairs(model:linear_layers()) do
    local layer, index = item.layer, item.stage.index
    local whole = opt.rank % (layer.groups or 1) == 0
    if not whole and targets ~= "all-linear" and targeted(layer.name, targets, layer.expert) then
      return nil, ("'%s' has %d groups: its adapter's rank should be a multiple of them, not %d"):format(layer.name, layer.groups, opt.rank),
        "argument"
    end
    if not layer.saved and (not opt.layers or opt.layers[index]) and whole and targeted(layer.name, targets, layer.expert) then
      local one = { name = layer.name, alpha = opt.alpha, scale = scale_of(opt.alpha, opt.rank, opt.rslora),
        dropout = opt.dropout or 0, index = index }
      local a, b = lora.shapes(layer, opt.rank)
      local bound, A = 1 / math.sqrt(layer.into * (layer.kernel or 1) ^ 2), tensors.new("f32", a)
      one.A = tensors.keep(core.uniform(A, opt.seed or 0, layer.name .. ".lora_A", 0, -bound, bound))
      one.B = tensors.keep(tensors.zeros("f32", b))
      attach(model, layer, one)
      adapter.modules[#adapter.modules + 1] = one
    end
  end
  if #adapter.modules == 0 then return nil, "no linear layer matches the targets and layers", "argument" end
  return adapter
end

-- Takes the adapters off the model and frees them.
function lora.remove(model, adapter)
  for _, item in ipairs(model:linear_layers()) do item.layer.adapter = nil end
  for _, one in ipairs(adapter.modules) do
    for _, part in ipairs { "A", "B", "a", "b" } do tape.forget(one[part]) one[part]:free() end
  end
end

-- What PEFT selects layers by: last names and block numbers where the adapter covers every pair of them, else whole paths.
local function selection(model, adapter)
  local names, layers, paths, pairs_known, outside = {}, {}, {}, 0, false
  for _, one in ipairs(adapter.modules) do
    names[one.name:match "[^.]+$"], paths[one.name] = true, true
    if one.index then layers[one.index] = true else outside = true end -- of no block
  end
  for _, item in ipairs(model:linear_layers()) do
    local covered = item.stage.index and layers[item.stage.index] or not item.stage.index and (outside or item.layer.saved)
    if names[item.layer.name:match "[^.]+$"] and covered then pairs_known = pairs_known + 1 end
  end
  -- last names of image nets are numbers and fit whole blocks, too
  if pairs_known ~= #adapter.modules or model.net.data == "images" then return sorted_keys(paths) end
  local every = true
  for _, stage in ipairs(model.stages) do every = every and (stage.kind ~= "block" or layers[stage.index] ~= nil) end
  if outside and not every then return sorted_keys(paths) end
  return sorted_keys(names), not every and sorted_keys(layers) or nil
end

-- PEFT's names of what a model is trained for.
local tasks = { decoder = "CAUSAL_LM", classes = "SEQ_CLS", tokens = "TOKEN_CLS", spans = "QUESTION_ANS" }
local function kind_of(model) return model.net.data or model.sizes.top and model.sizes.top.kind or "decoder" end

-- adapter_config.json's content.
function lora.config(model, adapter)
  local targets, layers = selection(model, adapter)
  local ranks, alphas = {}, {}
  for _, one in ipairs(adapter.modules) do
    local key = "^" .. one.name:gsub("%.", "\\.")
    if one.A:size(1) ~= adapter.rank then ranks[key] = one.A:size(1) end
    if one.alpha ~= adapter.alpha then alphas[key] = one.alpha end
  end
  return {
    peft_type = "LORA", task_type = tasks[kind_of(model)] or json.null, r = adapter.rank,
    lora_alpha = adapter.alpha, lora_dropout = adapter.dropout,
    target_modules = json.array(targets), bias = "none", base_model_name_or_path = model.directory,
    fan_in_fan_out = false, inference_mode = true, use_rslora = adapter.rslora, use_dora = false, init_lora_weights = true,
    layers_to_transform = layers and json.array(layers) or json.null,
    layers_pattern = layers and ((model.sizes.names or {}).block or ""):match "([%w_]+)%.%%d" or layers and "layers" or json.null,
    modules_to_save = adapter.saved and json.array(model.sizes.saves) or json.null, rank_pattern = ranks, alpha_pattern = alphas,
  }
end

-- Writes adapter_model.safetensors and adapter_config.json into `directory`, of a classifier labels.json, too: its classes' names.
-- Returns true, or nil, message, code.
function lora.save(model, adapter, directory)
  local ok, message, code = system.mkdir_p(directory)
  if not ok then return nil, message, code end
  local values = {}
  for _, one in ipairs(adapter.modules) do
    values[PREFIX .. one.name .. ".lora_A.weight"], values[PREFIX .. one.name .. ".lora_B.weight"] = one.A, one.B
  end
  for _, p in ipairs(adapter.saved or {}) do values[PREFIX .. p.name] = p.value end
  ok, message, code = stores.write(directory .. "/adapter_model.safetensors", values, { format = "pt" })
  if not ok then return nil, message, code end
  if adapter.saved and model.sizes.labels then
    local labels = {}
    for id = 0, model.sizes.outputs - 1 do labels[id + 1] = model.sizes.labels[id] end
    ok, message, code = system.write_file(directory .. "/labels.json", json.encode(json.array(labels)) .. "\n")
    if not ok then return nil, message, code end
  end
  return system.write_file(directory .. "/adapter_config.json", json.encode(lora.config(model, adapter), { pretty = true }) .. "\n")
end

local function present(value) return value ~= nil and value ~= json.null and value ~= false end

-- What of PEFT's config changes the result beyond A, B and a scale; nil if nothing does.
local function unsupported(config, model)
  if config.peft_type ~= "LORA" then return ("peft_type '%s'"):format(tostring(config.peft_type)) end
  for _, key in ipairs { "use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "lora_bias", "alora_invocation_tokens", "arrow_config",
    "kasa_config", "monteclora_config" } do
    if present(config[key]) then return key end
  end
  for _, key in ipairs { "modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters" } do
    local known = key == "modules_to_save" and model.sizes.saves
    if present(config[key]) and next(config[key]) ~= nil and not known then return key end
  end
  if present(config.bias) and config.bias ~= "none" then return ("bias '%s'"):format(tostring(config.bias)) end
  local init = config.init_lora_weights -- these subtract from the base weights before training
  if type(init) == "string" and (init:find "^pissa" or init == "olora" or init == "corda" or init == "loftq" or init == "lora_ga") then
    return ("init_lora_weights '%s'"):format(init)
  end
end

-- The value that a rank_pattern or alpha_pattern has for a layer, as PEFT matches its keys: a whole name, or a regular expression
-- for the name's end. Returns nil where no key matches; or nil, message.
local function pattern_value(pattern, name)
  if type(pattern) ~= "table" then return nil end
  local value
  for _, key in ipairs(sorted_keys(pattern)) do
    local hit, message = regex.match("^(?:.*\\.)?(?:" .. key .. ")$", name)
    if hit == nil then return nil, message end
    if hit then
      if value and value ~= pattern[key] then return nil, ("several patterns with different values match '%s'"):format(name) end
      value = pattern[key]
    end
  end
  return value
end

-- The name that an adapter in `store` has for a layer: the layer's own, or the one that the family also goes by (c.aliases).
local function name_in(store, model, item)
  local layer, aliases = item.layer, model.sizes.aliases
  if aliases and aliases[layer.role] and item.stage.index and not store:info(PREFIX .. layer.name .. ".lora_A.weight") then
    return aliases.block:format(item.stage.index) .. "." .. aliases[layer.role]
  end
  return layer.name
end

-- What an adapter directory holds, for a plan, from the file's header: its largest rank, and its blocks as a set of numbers.
-- Returns rank, set; or nil, message, code.
function lora.extent(directory, model)
  local store, message, code = stores.open(directory .. "/adapter_model.safetensors")
  if not store then return nil, message, code end
  local rank, blocks = 1, {}
  for _, item in ipairs(model:linear_layers()) do
    local info = store:info(PREFIX .. name_in(store, model, item) .. ".lora_A.weight")
    if info then
      rank = math.max(rank, info.shape[1])
      if item.stage.index then blocks[item.stage.index] = true end
    end
  end
  store:close()
  return rank, next(blocks) and blocks or nil
end

-- Bytes that an adapter directory's tensors take on a model, with the copies that bf16 arithmetic reads; 0 if it cannot be read.
function lora.bytes(directory, model)
  local store = stores.open(directory .. "/adapter_model.safetensors")
  if not store then return 0 end
  local total = 0
  for _, name in ipairs(store:names()) do
    local info = store:info(name)
    local n = 1
    for _, size in ipairs(info.shape) do n = n * size end
    total = total + n * (model.dtype == "bf16" and 6 or 4) + 128
  end
  store:close()
  return total
end

-- Reads an adapter directory (ours or PEFT's) and puts it on a loaded model. Returns the adapter, or nil, message, code.
function lora.load(model, directory)
  local config, message, code = files.read_json(directory .. "/adapter_config.json")
  if not config then return nil, message, code end
  local store
  store, message, code = stores.open(directory .. "/adapter_model.safetensors")
  if not store then return nil, message, code end
  local refused = unsupported(config, model)
  if refused then store:close() return nil, ("%s: %s is not supported"):format(directory, refused), "unsupported" end
  if type(config.lora_alpha) ~= "number" or type(config.r) ~= "number" then
    store:close()
    return nil, directory .. "/adapter_config.json: 'r' and 'lora_alpha' should be numbers", "format"
  end
  local adapter = { rank = config.r, alpha = config.lora_alpha,
    dropout = type(config.lora_dropout) == "number" and config.lora_dropout or 0,
    rslora = config.use_rslora == true, modules = {} }
  local used, failure = {}, nil
  local function read(name, shape, free) -- the size in dimension `free` follows from the rank
    local info = store:info(name)
    if not info then return nil, ("%s: tensor '%s' is missing"):format(directory, name) end
    for d = 1, math.max(#shape, #info.shape) do
      if #info.shape ~= #shape or d ~= free and info.shape[d] ~= shape[d] then
        return nil, ("%s: tensor '%s' has the shape (%s), expected %d in dimension %d"):format(directory, name,
          table.concat(info.shape, ", "), shape[d] or 0, d)
      end
    end
    used[name] = true
    return store:read(name, "f32")
  end
  for _, item in ipairs(model:linear_layers()) do
    local layer = item.layer
    local read_as = name_in(store, model, item)
    local key = PREFIX .. read_as
    if not failure and (store:info(key .. ".lora_A.weight") or store:info(key .. ".lora_B.weight")) then
      local one = { name = layer.name, read_as = read_as, dropout = adapter.dropout, index = item.stage.index }
      local a, b = lora.shapes(layer, 1)
      one.A, failure = read(key .. ".lora_A.weight", a, 1)
      if one.A then one.B, failure = read(key .. ".lora_B.weight", b, 2) end
      if one.A and one.B then
        tensors.keep(one.A, one.B)
        local rank = one.A:size(1)
        if one.B:size(2) * (layer.groups or 1) ~= rank then failure = ("%s: A and B of '%s' have different ranks"):format(directory, layer.name) end
        local expected, bad_rank = pattern_value(config.rank_pattern, layer.name)
        local alpha, bad_alpha = pattern_value(config.alpha_pattern, layer.name)
        if bad_rank or bad_alpha then
          local which = bad_rank and "rank_pattern" or "alpha_pattern"
          failure = ("%s/adapter_config.json: %s: %s"):format(directory, which, bad_rank or bad_alpha)
        end
        expected, one.alpha = expected or adapter.rank, alpha or adapter.alpha
        if rank ~= expected then
          failure = ("%s: '%s' has rank %d, the config says %s"):format(directory, layer.name, rank, tostring(expected))
        end
        one.scale = scale_of(one.alpha, rank, adapter.rslora)
        attach(model, layer, one)
        adapter.modules[#adapter.modules + 1] = one
      end
    end
  end
  for _, t in ipairs(failure and {} or saved.tensors(model)) do
    if store:info(PREFIX .. t.name) then
      local value = assert(store:read(PREFIX .. t.name, "f32"))
      if table.concat(value:shape(), ",") ~= table.concat(t.shape, ",") then
        failure = ("%s: tensor '%s' has the shape (%s), expected (%s)"):format(directory, PREFIX .. t.name,
          table.concat(value:shape(), ", "), table.concat(t.shape, ", "))
        break
      end
      used[PREFIX .. t.name] = true
      saved.value(t):copy(value)
      value:free()
    end
  end
  if not failure then
    for _, name in ipairs(store:names()) do
      if not used[name] then failure = ("%s: tensor '%s' fits no layer of %s"):format(directory, name, model.path) break end
    end
  end
  if not failure and #adapter.modules == 0 then failure = directory .. ": the adapter holds no LoRA tensors" end
  store:close()
  if failure then
    if #adapter.modules > 0 then lora.remove(model, adapter) end
    return nil, failure, "format"
  end
  return adapter
end

return lora
