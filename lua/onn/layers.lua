-- Which blocks are trained: "all", "0-3,36-39", "first:4,last:4", a heuristic's name (recipes/select/NAME.lua) or its file.
local program = require "onn.core.program"
local system = require "onn.core.system"

local layers = {}

local function stages_for_heuristic(model)
  local list = {}
  for _, stage in ipairs(model.stages) do
    if stage.kind == "block" then
      local one = { index = stage.index, name = stage.name, kind = stage.kind, bytes = 0, parameters = 0, tensors = {} }
      for _, t in ipairs(stage.tensors) do
        local info = model.store:info(t.name)
        local n = 1
        for _, size in ipairs(t.shape) do n = n * size end
        one.bytes, one.parameters = one.bytes + info.bytes, one.parameters + n
        one.tensors[#one.tensors + 1] = { name = t.name, shape = t.shape, bytes = info.bytes }
      end
      list[#list + 1] = one
    end
  end
  return list
end

-- What a heuristic may look at: probe.weight(name) reads a tensor as f32; probe.seed is the run's.
local function new_probe(model, seed)
  return { seed = seed, weight = function(name) return assert(model.store:read(name, "f32")) end }
end

local function find_heuristic(text)
  local path = text:find "%.lua$" and text or ("%s/recipes/select/%s.lua"):format(program.home, text)
  return system.exists(path) and path or nil
end

local function by_heuristic(path, model, opt, count)
  local chunk, message = loadfile(path, "t")
  if not chunk then return nil, message end
  local score = chunk()
  if type(score) ~= "function" then return nil, path .. ": a heuristic returns one function" end
  local list = stages_for_heuristic(model)
  local scores = score(list, new_probe(model, opt.seed or 0))
  if type(scores) ~= "table" or #scores ~= #list then
    return nil, ("%s: expected %d scores, got %s"):format(path, #list, type(scores) == "table" and #scores or type(scores))
  end
  local order = {}
  for i = 1, #list do
    if type(scores[i]) ~= "number" or scores[i] ~= scores[i] then return nil, ("%s: score %d is not a number"):format(path, i) end
    order[i] = i
  end
  table.sort(order, function(a, b) if scores[a] ~= scores[b] then return scores[a] > scores[b] end return a < b end)
  local kept = opt.count or math.max(1, math.floor(count * (opt.ratio or 0.2) + 0.5))
  local set = {}
  for k = 1, math.min(kept, #order) do set[list[order[k]].index] = true end
  return set
end

-- Returns a set {[block number, 0-based] = true}, nil for all blocks; or false and a message.
function layers.parse(text, model, opt)
  local path = text and text ~= "all" and find_heuristic(text)
  for _, key in ipairs { "count", "ratio" } do
    if opt[key] and not path then return false, ("--%s says how many layers a heuristic keeps; --layers names none"):format(key) end
  end
  if not text or text == "all" then return nil end
  local count = model.sizes.layers
  if path then
    local set, message = by_heuristic(path, model, opt, count)
    return set or false, message
  end
  local set = {}
  for item in text:gmatch "[^,]+" do
    item = item:match "^%s*(.-)%s*$"
    local first, last = item:match "^(%d+)%-(%d+)$"
    local side, n = item:match "^(%a+):(%d+)$"
    if item:match "^%d+$" then first, last = item, item end
    if side and tonumber(n) > count then return false, ("--layers %s: '%s' is more than the %d layers"):format(text, item, count) end
    if side == "first" then first, last = 0, tonumber(n) - 1
    elseif side == "last" then first, last = count - tonumber(n), count - 1 end
    first, last = tonumber(first), tonumber(last)
    if not first then
      return false, ("--layers %s: '%s' is no range, no first:N or last:N, and no heuristic in recipes/select"):format(text, item)
    end
    if last >= count or first > last then
      return false, ("--layers %s: '%s' does not lie in 0-%d"):format(text, item, count - 1)
    end
    for index = first, last do set[index] = true end
  end
  if not next(set) then return false, ("--layers %s: no layer is named"):format(text) end
  return set
end

-- Blocks as scripts give them: a list of 0-based numbers, or a set {[number] = true}. Returns a set, or false and a message.
function layers.set(given, model)
  local set, count = {}, model.sizes.layers
  for key, value in pairs(given) do
    local index = value == true and key or value
    if type(index) ~= "number" or index < 0 or index >= count or index ~= math.floor(index) then
      return false, ("layers: expected numbers from 0 to %d, found %s"):format(count - 1, tostring(index))
    end
    set[index] = true
  end
  if not next(set) then return false, "layers: no layer is named" end
  return set
end

-- A set as text: "0-3,36-39".
function layers.text(set, count)
  local parts, first = {}, nil
  for index = 0, count do
    if set[index] and not first then first = index end
    if first and not set[index] then
      parts[#parts + 1] = first == index - 1 and tostring(first) or ("%d-%d"):format(first, index - 1)
      first = nil
    end
  end
  return table.concat(parts, ",")
end

return layers
