-- What a model is: parameters, bytes, stages and tensors, and what stands in the way of running it. Reads headers only.
local arch = require "onn.arch"
local discover = require "onn.discover"
local findings = require "onn.discover.findings"
local files = require "onn.files"
local json = require "onn.core.json"
local Model = require "onn.model"

local inspect = {}

local function elements(shape)
  local n = 1
  for _, size in ipairs(shape) do n = n * size end
  return n
end

-- The family's own stages, with what the store says of their tensors.
local function known_stages(model)
  local stages = {}
  for i, stage in ipairs(model.stages) do
    local one = { name = stage.name, kind = stage.kind, index = stage.index, tensors = {} }
    for k, t in ipairs(stage.tensors) do
      local info = model.store:info(t.name) or { shape = t.shape, dtype = "F32", bytes = 4 * elements(t.shape) } -- what is made new
      one.tensors[k] = { name = t.name, shape = info.shape, dtype = info.dtype, bytes = info.bytes, role = t.role }
    end
    stages[i] = one
  end
  return stages
end

local function architecture_name(model, kind)
  local c = model.config
  if model.family then return model.family end
  local name = c and (c.model_type or c.architecture)
  return type(name) == "string" and name or "unknown " .. kind
end


-- What stands for the keys of a config.json that were not given: from shapes, or the family's default.
local function assumed(model, opt)
  if not opt or not opt.family or not model.sizes then return nil end
  local list = json.array {}
  local file = files.read_json(model.directory .. "/config.json")
  for role, names in pairs(arch.families()[opt.family].config) do
    local key = type(names) == "table" and names[1] or names
    local given = opt.set and opt.set[key] or type(file) == "table" and file[key]
    local value = model.config[key]
    if value == nil then value = model.sizes[role] end
    if not given and value ~= nil and type(value) ~= "table" then
      list[#list + 1] = { key = key, value = value, from = model.config[key] ~= nil and "shapes" or "default" }
    end
  end
  table.sort(list, function(x, y) return x.key < y.key end)
  return list
end

-- Returns the analysis: {path, architecture, architecture_type, total_params, total_bytes, total_size_gb, num_layers, hidden_sizes,
-- layer_groups {role = tensor names}, dtypes {dtype = parameters}, stages {name, kind, index, parameters, bytes, tensors}, buffers,
-- runnable, missing; with opt.family assumed {key, value, from}; and of what cannot be run findings
-- {what, value, confidence, why} and not_told (what shapes do not say)} and the model (open; close it),
-- or nil, message, code. opt: as Model.open's.
function inspect.analyse(path, opt)
  local model, message, code = Model.open(path, opt)
  if not model then return nil, message, code end
  local runnable = #model.missing == 0
  local stages = runnable and known_stages(model) or nil
  local found, facts, lacking
  if not stages then
    local stacks
    stages, stacks = discover.stages(model.store:names(), function(name) return model.store:info(name) end)
    found, facts, lacking = findings.of(stages, stacks)
  end
  local a = { path = model.path, runnable = runnable, missing = json.array {}, stages = json.array(stages), layer_groups = {},
    dtypes = {}, total_params = 0, total_bytes = 0, buffers = json.array {}, num_layers = 0 }
  for _, stage in ipairs(stages) do
    stage.parameters, stage.bytes = 0, 0
    for _, t in ipairs(stage.tensors) do
      local n = elements(t.shape)
      t.parameters = n
      stage.bytes, a.total_bytes = stage.bytes + t.bytes, a.total_bytes + t.bytes
      if t.buffer == nil then t.buffer = discover.is_buffer(t.name, t) or nil end
      if t.buffer then
        a.buffers[#a.buffers + 1] = t.name
      else
        stage.parameters, a.dtypes[t.dtype] = stage.parameters + n, (a.dtypes[t.dtype] or 0) + n
        local group = discover.role(t, stage.kind)
        a.layer_groups[group] = a.layer_groups[group] or json.array {}
        table.insert(a.layer_groups[group], t.name)
      end
    end
    a.total_params = a.total_params + stage.parameters
    if stage.index then a.num_layers = a.num_layers + 1 end
  end
  a.total_size_gb = a.total_bytes / 1e9
  a.architecture_type = facts and facts.type or discover.type(stages)
  a.findings, a.not_told = found and json.array(found), lacking and json.array(lacking)
  a.assumed = assumed(model, opt)
  a.architecture = architecture_name(model, a.architecture_type)
  a.hidden_sizes = json.array(model.sizes and { model.sizes.width } or discover.widths(stages))
  for i, line in ipairs(model.missing) do a.missing[i] = line end
  if not model.config then
    a.missing[#a.missing + 1] = ("shapes do not tell %s: give config.json, or --family NAME with --set KEY=VALUE"):format(
      table.concat(lacking, "; "))
  end
  return a, model
end

-- The `architecture` object of universal_config.json.
function inspect.summary(a)
  return { name = a.architecture, total_params = a.total_params, total_size_gb = a.total_size_gb, architecture_type = a.architecture_type,
    num_layers = a.num_layers, hidden_sizes = a.hidden_sizes, layer_groups = a.layer_groups }
end

return inspect
