-- LoRA (arXiv 2106.09685) with PEFT's conventions and files: y = W x + s B A x, s = alpha / r (rsLoRA: alpha / sqrt(r)),
-- A uniform in +-1/sqrt(in), B = 0, both kept in f32; the arithmetic reads bf16 copies where it runs in bf16.
local core = require "onn.core.ops"
local files = require "onn.files"
local json = require "onn.core.json"
local stores = require "onn.core.store"
local system = require "onn.core.system"
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"

local lora = {}

local PREFIX = "base_model.model."

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
      params[#params + 1] = { name = one.name .. "." .. part, value = value, gradients = { gradient }, shadow = used ~= value and used or nil }
    end
  end
  return params
end

-- Is layer wanted by a list of targets: last name ("q_proj") or whole path?
local function targeted(name, targets)
  if targets == "all-linear" then return true end
  for _, target in ipairs(targets) do
    if name == target or name:sub(-#target - 1) == "." .. target then return true end
  end
  return false
end

-- Puts fresh adapters on a loaded model. opt: rank, alpha, dropout, targets ("all-linear" or list), layers (set {[index]=true} or nil:
-- all blocks), seed, rslora. Returns the adapter, or nil and a message when nothing matches.
function lora.create(model, opt)
  local scale = opt.alpha / (opt.rslora and math.sqrt(opt.rank) or opt.rank)
  local adapter = { rank = opt.rank, alpha = opt.alpha, dropout = opt.dropout or 0, rslora = opt.rslora or false, modules = {}, targets = opt.targets, layers = opt.layers }
  local known = {}
  for _, item in ipairs(model:linear_layers()) do
    local layer, index = item.layer, item.stage.index
    known[layer.name:match "[^.]+$"] = true
    if (not opt.layers or opt.layers[index]) and targeted(layer.name, opt.targets) then
      local one = { name = layer.name, scale = scale, dropout = opt.dropout or 0, index = index }
      local bound = 1 / math.sqrt(layer.into)
      one.A = tensors.keep(core.uniform(tensors.new("f32", { opt.rank, layer.into }), opt.seed or 0, layer.name .. ".lora_A", 0, -bound, bound))
      one.B = tensors.keep(tensors.zeros("f32", { layer.out, opt.rank }))
      attach(model, layer, one)
      adapter.modules[#adapter.modules + 1] = one
    end
  end
  if #adapter.modules == 0 then
    local names = {}
    for name in pairs(known) do names[#names + 1] = name end
    table.sort(names)
    return nil, "no linear layer matches the targets and layers; this model has " .. table.concat(names, ", ")
  end
  return adapter
end

-- Takes the adapters off the model and frees them.
function lora.remove(model, adapter)
  for _, item in ipairs(model:linear_layers()) do item.layer.adapter = nil end
  for _, one in ipairs(adapter.modules) do
    for _, part in ipairs { "A", "B", "a", "b" } do tape.forget(one[part]) one[part]:free() end
  end
end

local function sorted_keys(set)
  local list = {}
  for k in pairs(set) do list[#list + 1] = k end
  table.sort(list)
  return list
end

-- adapter_config.json's content.
function lora.config(model, adapter)
  local names, layers, partial = {}, {}, false
  local covered = {}
  for _, one in ipairs(adapter.modules) do
    names[one.name:match "[^.]+$"], layers[one.index] = true, true
    covered[one.index] = true
  end
  for _, stage in ipairs(model.stages) do partial = partial or (stage.kind == "block" and not covered[stage.index]) end
  return {
    peft_type = "LORA", task_type = "CAUSAL_LM", r = adapter.rank, lora_alpha = adapter.alpha, lora_dropout = adapter.dropout,
    target_modules = json.array(sorted_keys(names)), bias = "none", base_model_name_or_path = model.directory,
    fan_in_fan_out = false, inference_mode = true, use_rslora = adapter.rslora, use_dora = false, init_lora_weights = true,
    layers_to_transform = partial and json.array(sorted_keys(layers)) or json.null,
    layers_pattern = partial and "layers" or json.null, modules_to_save = json.null, rank_pattern = {}, alpha_pattern = {},
  }
end

-- Writes adapter_model.safetensors and adapter_config.json into `directory`. Returns true, or nil, message, code.
function lora.save(model, adapter, directory)
  local ok, message, code = system.mkdir_p(directory)
  if not ok then return nil, message, code end
  local values = {}
  for _, one in ipairs(adapter.modules) do
    values[PREFIX .. one.name .. ".lora_A.weight"], values[PREFIX .. one.name .. ".lora_B.weight"] = one.A, one.B
  end
  ok, message, code = stores.write(directory .. "/adapter_model.safetensors", values, { format = "pt" })
  if not ok then return nil, message, code end
  return system.write_file(directory .. "/adapter_config.json", json.encode(lora.config(model, adapter), { pretty = true }) .. "\n")
end

local function unsupported(config)
  if config.peft_type ~= "LORA" then return ("peft_type '%s'"):format(tostring(config.peft_type)) end
  for _, key in ipairs { "use_dora", "fan_in_fan_out" } do if config[key] == true then return key end end
  if config.bias and config.bias ~= "none" then return ("bias '%s'"):format(tostring(config.bias)) end
end

-- Reads an adapter directory (ours or PEFT's) and puts it on a loaded model. Returns the adapter, or nil, message, code.
function lora.load(model, directory)
  local config, message, code = files.read_json(directory .. "/adapter_config.json")
  if not config then return nil, message, code end
  local store
  store, message, code = stores.open(directory .. "/adapter_model.safetensors")
  if not store then return nil, message, code end
  local refused = unsupported(config)
  if refused then store:close() return nil, ("%s: %s is not supported"):format(directory, refused), "unsupported" end
  local rank_pattern = type(config.rank_pattern) == "table" and config.rank_pattern or {}
  local alpha_pattern = type(config.alpha_pattern) == "table" and config.alpha_pattern or {}
  if type(config.lora_alpha) ~= "number" or type(config.r) ~= "number" then
    store:close()
    return nil, directory .. "/adapter_config.json: 'r' and 'lora_alpha' should be numbers", "format"
  end
  local adapter = { rank = config.r, alpha = config.lora_alpha, dropout = type(config.lora_dropout) == "number" and config.lora_dropout or 0,
    rslora = config.use_rslora == true, modules = {} }
  local used, by_index, failure = {}, {}, nil
  local function read(name, shape, d)
    local info = store:info(name)
    if not info then return nil, ("%s: tensor '%s' is missing"):format(directory, name) end
    if #info.shape ~= 2 or info.shape[d] ~= shape then
      return nil, ("%s: tensor '%s' has the shape (%s), expected %d in dimension %d"):format(directory, name, table.concat(info.shape, ", "), shape, d)
    end
    used[name] = true
    return store:read(name, "f32")
  end
  for _, item in ipairs(model:linear_layers()) do
    local layer = item.layer
    local key = PREFIX .. layer.name
    if not failure and (store:info(key .. ".lora_A.weight") or store:info(key .. ".lora_B.weight")) then
      local one = { name = layer.name, dropout = adapter.dropout, index = item.stage.index }
      one.A, failure = read(key .. ".lora_A.weight", layer.into, 2)
      if one.A then one.B, failure = read(key .. ".lora_B.weight", layer.out, 1) end
      if one.A and one.B then
        tensors.keep(one.A, one.B)
        local rank, last = one.A:size(1), layer.name:match "[^.]+$"
        if one.B:size(2) ~= rank then failure = ("%s: A and B of '%s' have different ranks"):format(directory, layer.name) end
        local alpha = alpha_pattern[layer.name] or alpha_pattern[last] or adapter.alpha
        local expected = rank_pattern[layer.name] or rank_pattern[last] or adapter.rank
        if rank ~= expected then failure = ("%s: '%s' has rank %d, the config says %d"):format(directory, layer.name, rank, expected) end
        one.scale = alpha / (adapter.rslora and math.sqrt(rank) or rank)
        attach(model, layer, one)
        adapter.modules[#adapter.modules + 1] = one
        by_index[item.stage.index] = true
      end
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
