-- What a model is: parameters, bytes, stages and tensors, and what stands in the way of running it. Reads headers only.
local discover = require "onn.discover"
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

-- Names and shapes tell neither heads nor constants; said exactly, so that people know what to add.
local absent_config = "without a config the number of heads, rotary base, epsilon, activation and windows are unknown: "
  .. "give config.json, or --family NAME with --set KEY=VALUE"

-- Returns the analysis: {path, architecture, architecture_type, total_params, total_bytes, total_size_gb, num_layers, hidden_sizes,
-- layer_groups {role = tensor names}, dtypes {dtype = parameters}, stages {name, kind, index, parameters, bytes, tensors}, buffers,
-- runnable, missing} and the model (open; close it), or nil, message, code. opt: dtype, config (instead of config.json).
function inspect.analyse(path, opt)
  local model, message, code = Model.open(path, opt)
  if not model then return nil, message, code end
  local runnable = #model.missing == 0
  local stages = runnable and known_stages(model) or nil
  if not stages then stages = discover.stages(model.store:names(), function(name) return model.store:info(name) end) end
  local a = { path = model.path, runnable = runnable, missing = json.array {}, stages = json.array(stages), layer_groups = {},
    dtypes = {}, total_params = 0, total_bytes = 0, buffers = json.array {}, num_layers = 0 }
  for _, stage in ipairs(stages) do
    stage.parameters, stage.bytes = 0, 0
    for _, t in ipairs(stage.tensors) do
      local n = elements(t.shape)
      t.parameters = n
      stage.bytes, a.total_bytes = stage.bytes + t.bytes, a.total_bytes + t.bytes
      if discover.is_buffer(t.name, t) then
        t.buffer = true
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
  a.architecture_type = discover.type(stages)
  a.architecture = architecture_name(model, a.architecture_type)
  a.hidden_sizes = json.array(model.sizes and { model.sizes.width } or discover.widths(stages))
  for i, line in ipairs(model.missing) do a.missing[i] = line end
  if not model.config then a.missing[#a.missing + 1] = absent_config end
  return a, model
end

-- The `architecture` object of universal_config.json.
function inspect.summary(a)
  return { name = a.architecture, total_params = a.total_params, total_size_gb = a.total_size_gb, architecture_type = a.architecture_type,
    num_layers = a.num_layers, hidden_sizes = a.hidden_sizes, layer_groups = a.layer_groups }
end

-- Values of --set as a config holds them: numbers, true, false, JSON, else text.
function inspect.stand_in(family, pairs_given)
  local config = { model_type = family }
  for key, text in pairs(pairs_given or {}) do
    local value = json.decode(text)
    if value == nil then value = text end
    config[key] = value
  end
  return config
end

return inspect
