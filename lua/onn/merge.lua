-- Folding an adapter into weights: W + scale * B A in f32, checked finite, rounded once, written to a new directory.
local core = require "onn.core.ops"
local files = require "onn.files"
local json = require "onn.core.json"
local lora = require "onn.nn.lora"
local Model = require "onn.model"
local scope = require "onn.scope"
local stores = require "onn.core.store"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local merge = {}

local copied = { "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
  "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model" }

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
    else
      local value
      value, message, code = model.store:read(name, dtype)
      if not value then return nil, message, code end
      values[name] = value
    end
  end
  ok, message, code = system.mkdir_p(opt.out)
  if ok then ok, message, code = stores.write(opt.out .. "/model.safetensors", values, { format = "pt" }) end
  if not ok then return nil, message, code end
  local config = files.read_json(model.directory .. "/config.json")
  local written = opt.storage ~= "stored" and ({ f32 = "float32", bf16 = "bfloat16" })[opt.storage]
  if written then config.dtype, config.torch_dtype = written, written end
  ok, message, code = system.write_file(opt.out .. "/config.json", json.encode(config, { pretty = true }) .. "\n")
  for _, name in ipairs(copied) do
    local text = ok and system.read_file(model.directory .. "/" .. name)
    if text then ok, message, code = system.write_file(opt.out .. "/" .. name, text) end
  end
  if not ok then return nil, message, code end
  for _, value in pairs(values) do if tensors.is_tensor(value) then value:free() end end
  local lossy = squares > 0
  return { merged = count, out = opt.out, rounding = lossy and { largest = largest, relative = math.sqrt(squares / change) } or nil }
end

return merge
