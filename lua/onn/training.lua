-- What is wrong, or without effect, among training's options; for the recipe and for scripts.
local system = require "onn.core.system"

local training = {}

local function given_of(opt) return opt._given or opt end

local full_excludes = { "rank", "alpha", "dropout", "targets", "adapter" }
local adapter_excludes = { "rank", "alpha", "targets", "layers" } -- the adapter's own say what they are

local function flag(key) return "--" .. key:gsub("_", "-") end

-- check(opt): nil, or one line that says which options do not go together or have no sense.
function training.check(opt)
  local given = given_of(opt)
  for _, key in ipairs(opt.full and full_excludes or opt.adapter and adapter_excludes or {}) do
    if given[key] ~= nil and given[key] ~= false then
      return ("%s: %s"):format(flag(key), opt.full and "--full trains the model's own weights, without an adapter"
        or "the adapter given with --adapter says that itself")
    end
  end
  if opt.full and opt.out and opt.model and system.realpath(opt.out) == (system.realpath(opt.model) or "") then
    return "--full: --out is the model itself; name another directory"
  end
  local betas = opt.betas
  if betas and (#betas ~= 2 or betas[1] < 0 or betas[1] >= 1 or betas[2] < 0 or betas[2] >= 1) then
    return ("--betas: expected two numbers from 0 to below 1, got %s"):format(table.concat(betas, ","))
  end
  if opt.eval_every and not opt.eval then return "--eval-every: held-out data is needed, --eval DATA" end
  if opt.count and opt.ratio then return "--count and --ratio say the same thing twice: give one" end
end

-- idle(opt): lines about options that are taken and change nothing, because all weights rest in memory.
function training.idle(opt)
  local given, names = given_of(opt), {}
  for _, key in ipairs { "chunk", "slots", "prefetch", "prefix_cache", "scratch" } do
    if given[key] ~= nil then
      names[#names + 1] = (key == "prefetch" or key == "prefix_cache") and opt[key] == false and flag("no_" .. key) or flag(key)
    end
  end
  if #names == 0 then return nil end
  return table.concat(names, ", ") .. (#names == 1 and " has" or " have") .. " no effect yet: all weights rest in memory"
end

-- Takes an older run's adapter out of a directory that now holds a whole model: readers would put it on.
function training.clear_adapter(directory)
  for _, name in ipairs { "adapter_config.json", "adapter_model.safetensors" } do os.remove(directory .. "/" .. name) end
end

return training
