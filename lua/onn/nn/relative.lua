-- Buckets of relative positions (arXiv 1910.10683, section 2.1): small distances have one each, larger ones share in steps that grow
-- with their logarithm, all from `farthest` on are one.
local scope = require "onn.scope"
local tensors = require "onn.core.tensor"

local relative = {}

-- What a model adds to its scores: {[key] = {table, zero}}, freed by free().
local Tables = { __index = { free = function(self) for _, one in pairs(self) do one.table:free() end end } }
function relative.tables() return setmetatable({}, Tables) end

-- make(model, ...), remembered as model[key] until the model is closed; false for nil. A dry run remembers nothing.
function relative.remembered(model, key, make, ...)
  if tensors.is_dry() then return make(model, ...) end
  if model[key] == nil then model[key] = scope(make, model, ...) or false end
  return model[key]
end

-- The bucket, from 0, of a key that lies `distance` places after its query (before it: negative). both: half of the buckets are for keys
-- after the query; without it such keys are in bucket 0.
function relative.bucket(distance, buckets, farthest, both)
  local first, n = 0, -distance
  if both then
    buckets = math.floor(buckets / 2)
    if distance > 0 then first, n = buckets, distance end
  end
  n = math.max(n, 0)
  local exact = math.floor(buckets / 2)
  if n < exact then return first + n end
  local share = math.log(n / exact) / math.log(farthest / exact)
  return first + math.min(buckets - 1, exact + math.floor(share * (buckets - exact) + 1e-6))
end

return relative
