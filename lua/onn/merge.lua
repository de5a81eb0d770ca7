-- Folding an adapter into weights: W + scale * B A in f32, checked finite, rounded once, written to a new directory.
local core = require "onn.core.ops"
local files = require "onn.files"
local lora = require "onn.nn.lora"
local Model = require "onn.model"
local model_files = require "onn.model_files"
local scope = require "onn.scope"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local merge = {}

local stored_names = { F32 = "f32", BF16 = "bf16", F16 = "f16" }

-- One merged weight in `dtype`, and what rounding cost: sum of squared errors, sum of squared changes, the largest error.
local function merged(weight, one, dtype)
  return scope(function()
    local change = core.affine(core.matmul(one.B, one.A), one.scale, 0)
    local exact = core.binary(weight:to "f32", change, "add")
    local _, bad = core.total(exact, false)
    if bad > 0 then return nil, ("the merged weight '%s' is not finite"):format(one.name) end
    local rounded = exact:to(dtype)
    local errors = core.binary(rounded:to "f32", exact, "sub")
    local largest = core.reduce(core.unary(errors, "abs"):view { errors:numel() }, "max"):item()
    return rounded, { squares = core.total(errors, true), change = core.total(change, true), largest = largest }
  end)
end

-- opt: model, adapter, out, storage ("stored"|"f32"|"bf16"), overwrite.
-- Returns {merged, rounding = {largest, relative} where weights were rounded}, or nil, message, code.
function merge.run(opt)
  local real = system.realpath(opt.out)
  if real and real == system.realpath(files.resolve(opt.model) or "") then
    return nil, opt.out .. " is the model itself; name another directory", "argument"
  end
  if system.exists(opt.out) and not opt.overwrite then return nil, opt.out .. " exists; --overwrite replaces it", "io" end
  local model, message, code = Model.open(opt.model, { dtype = "f32" })
  if not model then return nil, message, code end
  if #model.missing > 0 then return nil, model:why_not(), "format" end
  local ok
  ok, message, code = model:load()
  if not ok then return nil, message, code end
  local adapter
  adapter, message, code = lora.load(model, opt.adapter)
  if not adapter then return nil, message, code end
  local by_name = {}
  for _, one in ipairs(adapter.modules) do by_name[one.name .. ".weight"] = one end
  local loaded = {}
  for _, item in ipairs(model:linear_layers()) do loaded[item.layer.name .. ".weight"] = item.layer.weight end
  local values, squares, change, largest, count = {}, 0, 0, 0, 0
  for _, name in ipairs(model.store:names()) do
    local dtype = opt.storage == "stored" and stored_names[model.store:info(name).dtype] or opt.storage
    if by_name[name] then
      local value, cost = merged(loaded[name], by_name[name], dtype)
      if not value then return nil, cost, "format" end
      values[name], count = value, count + 1
      squares, change, largest = squares + cost.squares, change + cost.change, math.max(largest, cost.largest)
    end
  end
  ok, message, code = model_files.write(model, opt.out, values, opt.storage ~= "stored" and opt.storage or nil)
  if not ok then return nil, message, code end
  for _, value in pairs(values) do if tensors.is_tensor(value) then value:free() end end
  local lossy = squares > 0
  return { merged = count, out = opt.out, rounding = lossy and { largest = largest, relative = math.sqrt(squares / change) } or nil }
end

return merge
