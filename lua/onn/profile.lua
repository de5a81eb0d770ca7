-- What this machine can do, measured: rates of products, memory and disk. Kept in the user's cache until machine or program change.
local core = require "onn.core.ops"
local files = require "onn.files"
local json = require "onn.core.json"
local scope = require "onn.scope"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local profile = {}

-- Seconds of the fastest of `repeats` calls, after one that is not counted.
local function fastest(repeats, f)
  f()
  local best = math.huge
  for _ = 1, repeats do
    local began = system.now()
    f()
    best = math.min(best, system.now() - began)
  end
  return best
end

-- FLOP/s of x (rows, into) times a weight (out, into) through the kernel that training uses.
function profile.product(dtype, rows, out, into, repeats)
  return scope(function()
    local x, w = tensors.new(dtype, { rows, into }):fill(0.5), tensors.new(dtype, { out, into }):fill(0.25)
    return 2 * rows * out * into / fastest(repeats or 3, function() core.linear(x, w):free() end)
  end)
end

local function products()
  local list = {}
  local _, native = tensors.backend()
  for _, dtype in ipairs(native and { "f32", "bf16" } or { "f32" }) do
    for power = 0, 10 do
      local rows = 2 ^ power
      list[#list + 1] = { dtype = dtype, rows = rows, out = 2048, into = 2048, flops = profile.product(dtype, rows, 2048, 2048) }
    end
  end
  return list
end

-- Runs f with all processors and no budget, and leaves memory's figures as they were.
local function undisturbed(f)
  local threads, budget = tensors.threads(), tensors.memory().budget
  tensors.set_threads(system.cpu_count())
  tensors.set_budget(math.huge)
  local ok, result = pcall(f)
  tensors.trim()
  tensors.set_threads(threads)
  tensors.set_budget(budget)
  tensors.reset_peak()
  if not ok then error(result, 0) end
  return result
end

local function cache_path()
  local base = os.getenv "XDG_CACHE_HOME"
  if not base or base == "" then base = (os.getenv "HOME" or ".") .. "/.cache" end
  local exe = system.stat "/proc/self/exe"
  local key = ("%s|%d|%.0f|%s|%s|%.0f|%.0f"):format(system.cpu_model(), system.cpu_count(), system.total_ram(), system.host_name(),
    (tensors.backend()), exe and exe.size or 0, exe and exe.mtime or 0)
  local hash = 0
  for byte in key:gmatch "." do hash = (hash * 31 + byte:byte()) % 2 ^ 32 end
  return ("%s/onn/profile-%08x.json"):format(base, hash)
end

-- The machine's profile: measured now if there is none for this machine and program, or with opt.fresh. opt: quiet, fresh.
function profile.get(opt)
  opt = opt or {}
  local path = cache_path()
  local known = not opt.fresh and files.read_json(path)
  if known and type(known.products) == "table" then return known end
  local measured = undisturbed(function() return { products = products() } end)
  if system.mkdir_p(path:match "^(.*)/") then system.write_file(path, json.encode(measured) .. "\n") end
  return measured
end

-- The highest rate of products in `dtype` arithmetic, FLOP/s.
function profile.peak_flops(p, dtype)
  local best = 0
  for _, one in ipairs(p.products) do
    if one.dtype == dtype then best = math.max(best, one.flops) end
  end
  if best == 0 then best = profile.product(dtype, 1024, 2048, 2048) end
  return best
end

return profile
