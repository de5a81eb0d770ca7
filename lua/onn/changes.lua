-- Whether training moved what it should and nothing else: sums over every tensor before and after, stage by stage.
local core = require "onn.core.ops"
local scope = require "onn.scope"
local tensors = require "onn.core.tensor"

local changes = {}

-- Is it the same after training that leaves it alone? Running statistics may move, and counters are no numbers to sum.
local function stays(stage, t) return not t.dtype and not (t.state and stage.batch_statistics) end

local function fingerprint(t)
  return scope(function()
    local flat = t:contiguous():view { t:numel() } -- stored (in, out), it does not lie as it is used
    return ("%.17g/%.17g"):format((core.total(flat, false)), (core.total(flat, true)))
  end)
end

local function used_weight(stage, t)
  local w = stage.weights[t.role]
  if tensors.is_tensor(w) then return w end
  if w then return w.weight end
  local owner = stage.weights[t.role:match "^(.*)_bias$" or ""]
  return type(owner) == "table" and owner.bias or nil
end

-- A record of a model's tensors in memory: {stage name = {trained = {name = sum}, frozen = {name = sum}}}. params: what the
-- optimizer moves.
function changes.record(model, params)
  local moved, record = {}, {}
  for _, p in ipairs(params) do moved[p.name] = p.value end
  for _, stage in ipairs(model.stages) do
    local one = { trained = {}, frozen = {} }
    for _, t in ipairs(stage.tensors) do
      local w = used_weight(stage, t)
      if moved[t.name] then
        one.trained[t.name] = fingerprint(moved[t.name])
      elseif w and stays(stage, t) and (t.vector or not model.ring) then -- what passes through the ring is read from the file each time
        one.frozen[t.name] = fingerprint(w)
      end
    end
    for _, layer in ipairs(stage.layers) do
      for _, part in ipairs { "A", "B" } do
        local value = moved[layer.name .. "." .. part]
        if value then one.trained[layer.name .. "." .. part] = fingerprint(value) end
      end
    end
    record[stage.name] = one
  end
  return record
end

-- Compares two records of one model: every stage with trained tensors has changed, and no frozen tensor has.
-- Returns true, or nil and a message that names the first stage or tensor where that is not so.
function changes.check(before, after)
  for stage, was in pairs(before) do
    local now, trained, same = after[stage], false, true
    for name, sum in pairs(was.frozen) do
      if now.frozen[name] ~= sum then return nil, ("'%s' is not trained and yet it changed"):format(name) end
    end
    for name, sum in pairs(was.trained) do
      trained, same = true, same and now.trained[name] == sum
    end
    if trained and same then return nil, ("'%s' is trained and yet nothing in it changed"):format(stage) end
  end
  return true
end

return changes
