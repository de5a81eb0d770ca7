-- What the common options ask of the machine: device, threads, budgets; said once, before any work.
local cli = require "onn.cli"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"
local trace = require "onn.trace"

local runtime = {}

-- Bytes that onn takes when nobody says: 80 % of what is available, container limits included.
function runtime.default_budget() return math.floor(system.available_ram() * 0.8) end

-- Applies opt.device, opt.threads, opt.memory, opt.ram, opt.profile (a trace file). Returns {device, threads, budget}.
function runtime.apply(opt)
  local device = opt.device or "auto"
  if device ~= "auto" and device ~= "cpu" then
    cli.fail(("--device %s: this build has no CUDA back end; use --device cpu"):format(device))
  end
  if opt.profile and not opt.dry_run then
    local ok, message = trace.start(opt.profile)
    if not ok then cli.fail("--profile: " .. message) end
  end
  local threads = opt.threads or system.cpu_count()
  tensors.set_threads(threads)
  local budget = math.min(opt.memory or math.huge, opt.ram or math.huge)
  if budget == math.huge then budget = runtime.default_budget() end
  tensors.set_budget(budget)
  return { device = "cpu", threads = threads, budget = budget, description = (tensors.backend()) }
end

return runtime
