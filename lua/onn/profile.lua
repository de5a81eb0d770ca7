-- What this machine can do, measured once and kept in the user's cache until the machine or the program changes. What was
-- measured while other programs took the processors is measured again later, and the better figure stands.
local files = require "onn.files"
local json = require "onn.core.json"
local probes = require "onn.probes"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local profile = {}

local version = 5 -- of the kept file's form

-- Where onn keeps what it can make again.
function profile.cache_directory()
  local base = os.getenv "XDG_CACHE_HOME"
  if not base or base == "" then base = (os.getenv "HOME" or ".") .. "/.cache" end
  return base .. "/onn"
end

local function cache_path()
  local exe = system.stat "/proc/self/exe"
  local key = ("%d|%s|%d|%.0f|%s|%s|%.0f|%.0f"):format(version, system.cpu_model(), system.cpu_count(), system.total_ram(),
    system.host_name(), ((tensors.backend()):gsub("%d+ threads", "")), exe and exe.size or 0, exe and exe.mtime or 0)
  local hash = 0
  for byte in key:gmatch "." do hash = (hash * 31 + byte:byte()) % 2 ^ 32 end
  return ("%s/profile-%08x.json"):format(profile.cache_directory(), hash)
end

-- The share of the processors that this program gets: of a product that keeps them all busy for a moment.
function profile.processors_left()
  local began, cpu = system.now(), os.clock()
  probes.product("f32", 512, 1024, 1024)
  return math.min(1, (os.clock() - cpu) / (system.now() - began) / tensors.threads())
end

-- Runs f with all processors and no budget, and leaves memory's figures as they were. Returns f's value and the smaller share of
-- the processors that was left before and after it.
local function undisturbed(f)
  local threads, budget = tensors.threads(), tensors.memory().budget
  tensors.set_threads(system.cpu_count())
  tensors.set_budget(math.huge)
  local before = profile.processors_left()
  local ok, result = pcall(f)
  local share = ok and math.min(before, profile.processors_left())
  tensors.trim()
  tensors.set_threads(threads)
  tensors.set_budget(budget)
  tensors.reset_peak()
  if not ok then error(result, 0) end
  return result, share
end

-- Keeps the higher rates of two measurements of the same things.
local function better(old, new)
  if type(old) ~= "table" or type(new) ~= "table" then
    return type(old) == "number" and type(new) == "number" and math.max(old, new) or new
  end
  for key, value in pairs(new) do new[key] = better(old[key], value) end
  return new
end

local sections = {
  products = probes.products,
  passes = function() return probes.passes(system.available_ram() / 4) end,
  threads = probes.threads,
  memory = function() return probes.memory(system.available_ram() / 2) end,
  disk = function()
    local directory = profile.cache_directory()
    return system.mkdir_p(directory) and probes.disk(directory) or json.null
  end,
}
local order = { "products", "passes", "threads", "memory", "disk" }

local most_kept = 8 -- of other builds and machines with the same home

-- Removes the oldest kept profiles.
local function prune()
  local directory, list = profile.cache_directory(), {}
  for _, name in ipairs(system.list(directory) or {}) do
    local path = directory .. "/" .. name
    local stat = name:find "^profile%-%x+%.json$" and system.stat(path)
    if stat then list[#list + 1] = { path = path, mtime = stat.mtime } end
  end
  table.sort(list, function(a, b) return a.mtime > b.mtime end)
  for i = most_kept + 1, #list do os.remove(list[i].path) end
end

local quiet_share = 0.8 -- below this share of the processors a measurement is repeated at a later occasion
profile.quiet_share = quiet_share
local patience = 600    -- but not within so many seconds

-- The profile of this machine: what the cache lacks is measured now. opt: all (every section), sections (default: products only), fresh
-- (measure again), quiet (of progress, which hears note(name)), note.
function profile.get(opt)
  opt = opt or {}
  local path = cache_path()
  local kept = not opt.fresh and files.read_json(path) or nil
  if type(kept) ~= "table" or type(kept.shares) ~= "table" then kept = { shares = {}, times = {} } end
  local changed = false
  for _, name in ipairs(opt.all and order or opt.sections or { "products" }) do
    local disturbed = (kept.shares[name] or 1) < quiet_share and system.wall() - (kept.times[name] or 0) > patience
    if kept[name] == nil or disturbed then
      if opt.note and not opt.quiet then opt.note(name) end
      local value, share = undisturbed(sections[name])
      kept[name] = better(kept[name], value)
      kept.shares[name] = math.max(share, kept.shares[name] or 0)
      kept.times[name], changed = system.wall(), true
    end
  end
  if changed and system.mkdir_p(profile.cache_directory()) and system.write_file(path, json.encode(kept) .. "\n") then prune() end
  return kept
end

-- The share of the processors that was left around the worst section's measurement: low where other programs were running.
function profile.least_share(p)
  local least = 1
  for _, share in pairs(p.shares) do least = math.min(least, share) end
  return least
end

-- A line for people where the limits themselves were measured while other programs ran, or nil.
function profile.doubt(p)
  local share = profile.least_share(p)
  if share >= quiet_share then return nil end
  return ("this machine's limits were measured while other programs ran (%.0f %% of the processors were left), so shares of them are too "
    .. "high; `onn profile --fresh` measures again"):format(100 * share)
end

-- The highest rate of products in `dtype` arithmetic, FLOP/s.
function profile.peak_flops(p, dtype)
  local best = 0
  for _, one in ipairs(p.products) do
    if one.dtype == dtype then best = math.max(best, one.flops) end
  end
  if best == 0 then best = probes.product(dtype, 1024, 2048, 2048) end -- arithmetic that is not fast here
  return best
end

-- Bytes/s at which a model's files are read past the page cache, as streaming reads them: measured anew, since shared disks drift from
-- minute to minute.
function profile.disk_read(model) return (undisturbed(function() return probes.streaming(model) end)) end

-- Bytes/s at which a directory's disk is written to, as spilling does; the reading rate's half where nothing can be written there.
function profile.disk_write(directory, read)
  return (undisturbed(function() return probes.spilling(directory) or read / 2 end))
end

-- Bytes/s of `kind` (read, decode, copy) for something of this size: between measured sizes, the line between them.
function profile.memory_rate(p, kind, bytes)
  local list = p.memory
  for i = #list, 1, -1 do
    local one, above = list[i], list[i + 1]
    if bytes >= one.bytes then
      if not above then return one[kind] end
      return one[kind] + (above[kind] - one[kind]) * (bytes - one.bytes) / (above.bytes - one.bytes)
    end
  end
  return list[1][kind]
end

-- The `hardware` object of universal_config.json, in GB and GB/s of 1000s. p needs all sections.
function profile.hardware(p)
  local description, native = tensors.backend()
  local slowest = p.memory[#p.memory]
  return {
    device_type = "cpu", device_name = system.cpu_model(), total_memory_gb = system.total_ram() / 1e9,
    available_memory_gb = system.available_ram() / 1e9, compute_units = system.cpu_count(), compute_capability = description,
    memory_bandwidth_gbps = slowest.read / 1e9,
    host_to_device_bandwidth_gbps = slowest.copy / 1e9, -- the device is the host: a copy within memory
    supports_fp16 = false, supports_bf16 = native, supports_int8 = false,
    peak_gflops_f32 = profile.peak_flops(p, "f32") / 1e9, peak_gflops_bf16 = native and profile.peak_flops(p, "bf16") / 1e9 or json.null,
    decode_bandwidth_gbps = slowest.decode / 1e9,
    disk_read_cold_gbps = p.disk ~= json.null and p.disk.cold and p.disk.cold / 1e9 or json.null,
    disk_read_warm_gbps = p.disk ~= json.null and p.disk.warm / 1e9 or json.null,
    measured_with_share_of_processors = profile.least_share(p),
  }
end

return profile
