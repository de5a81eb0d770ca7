-- Folding an adapter into weights: W + scale * B A in f32, checked finite, rounded once, written to a new directory.
local core = require "onn.core.ops"
local files = require "onn.files"
local lora = require "onn.nn.lora"
local Model = require "onn.model"
local model_files = require "onn.model_files"
local system = require "onn.core.system"

local merge = {}

-- Makes the function of onn.model_files that folds one module into its weight's rows; `cost` sums up what rounding costs: squares of the
-- errors and of the changes, the largest error.
local function folding(one, cost)
  return function(rows, first, dtype)
    local rank = one.A:size(1) -- convolutions' are matrices, too: B has windows of a single pixel
    local B = one.B:narrow(1, first + 1, rows:size(1)):view { rows:size(1), rank }
    local change = core.affine(core.matmul(B, one.A:view { rank, one.A:numel() / rank }), one.scale, 0):view(rows:shape())
    local exact = core.binary(rows:to "f32", change, "add")
    local _, bad = core.total(exact, false)
    if bad > 0 then return nil, ("the merged weight '%s' is not finite"):format(one.name), "format" end
    local rounded = exact:to(dtype)
    local errors = core.binary(rounded:to "f32", exact, "sub")
    cost.largest = math.max(cost.largest, core.reduce(core.unary(errors, "abs"):view { errors:numel() }, "max"):item())
    cost.squares, cost.change = cost.squares + core.total(errors, true), cost.change + core.total(change, true)
    return rounded
  end
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
  local adapter
  adapter, message, code = lora.load(model, opt.adapter)
  if not adapter then return nil, message, code end
  for _, item in ipairs(model:linear_layers()) do
    if item.layer.adapter and (item.layer.groups or 1) > 1 then
      return nil, ("'%s' has %d groups: an adapter on it cannot be merged"):format(item.layer.name, item.layer.groups), "unsupported"
    end
  end
  local values, cost = {}, { squares = 0, change = 0, largest = 0 }
  local tensor = {}
  for _, item in ipairs(model:linear_layers()) do tensor[item.layer.name] = item.layer.tensor end
  for _, one in ipairs(adapter.modules) do values[tensor[one.name] or one.name .. ".weight"] = folding(one, cost) end
  local ok
  ok, message, code = model_files.write(model, opt.out, values, opt.storage ~= "stored" and opt.storage or nil)
  if not ok then return nil, message, code end
  model:close()
  return { merged = #adapter.modules, out = opt.out,
    rounding = cost.squares > 0 and { largest = cost.largest, relative = math.sqrt(cost.squares / cost.change) } or nil }
end

return merge
