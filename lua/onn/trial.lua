-- One trial of the search, in a process of its own: some real training updates under given settings, with hard limits on memory.
-- What happened is data: outcome ok | oom_device | oom_host | timeout | nan | failed.
local json = require "onn.core.json"
local system = require "onn.core.system"

local trial = {}

-- What the process may map beyond its tensors: libraries, Lua, threads' stacks, files being read.
local slack = 4e9

local function updates_of(model, spec)
  if not spec.data then return nil end
  local data = require "onn.data"
  local tokenizer = not spec.data:find "%.safetensors$" and assert(require("onn.tokenizer").open(model.directory)) or nil
  local set = assert(data.open(spec.data, tokenizer, spec))
  local order = { batch = spec.batch, micro_batch = spec.micro_batch, seq_len = spec.seq_len, pack = spec.pack, seed = spec.seed,
    epoch = 0, cursor = 0 }
  local iterate = data.batches(set, order)
  return function()
    local update = iterate()
    if not update then
      order.epoch, order.cursor = order.epoch + 1, 0
      iterate = data.batches(set, order)
      update = iterate()
    end
    return update
  end
end

-- Rates as the plan takes them, from the parent's {product, pass, copy, disk, write}: measuring them again would take the trial's time.
local function fixed_rates(r)
  return { product = r.product, pass = r.pass, copy = r.copy, disk = function() return r.disk end, write = function() return r.write end }
end

local function run(spec)
  local layers = require "onn.layers"
  local measure = require "onn.measure"
  local tensors = require "onn.core.tensor"
  tensors.set_threads(spec.threads)
  tensors.set_budget(spec.memory)
  local model = assert(require("onn.model").open(spec.model, { dtype = spec.dtype }))
  if #model.missing > 0 then error(model:why_not(), 0) end
  local set, wrong = layers.parse(spec.layers, model, spec)
  if set == false then error(wrong, 0) end
  local result = measure.training(model, { batch = spec.batch, seq_len = spec.seq_len, micro_batch = spec.micro_batch, rank = spec.rank,
    recompute = spec.recompute, row_tokens = spec.row_tokens, supervised = spec.supervised, layers = set, budget = spec.memory,
    chunk = spec.chunk, slots = spec.slots, rates = spec.rates and fixed_rates(spec.rates), steps = spec.steps, limit = spec.limit,
    updates = updates_of(model, spec) })
  local finite = true
  for _, loss in ipairs(result.losses) do finite = finite and loss == loss and math.abs(loss) < math.huge end
  return { outcome = finite and "ok" or "nan", loss = finite and result.losses[1] or json.null, rates = result.rates,
    tokens = result.tokens, seconds = result.seconds, peak = result.peak, rss = system.peak_rss(), bytes_read = result.bytes_read,
    bytes_written = result.bytes_written }
end

-- The child's side: prints one JSON object.
function trial.main(text)
  local spec = assert(json.decode(text))
  local ok, resource = pcall(require, "posix.sys.resource")
  if ok then resource.setrlimit(resource.RLIMIT_AS, { rlim_cur = spec.memory + slack, rlim_max = spec.memory + slack }) end
  local done, result = pcall(run, spec)
  if not done then
    local message = tostring(result):gsub("\n.*", "")
    local outcome = message:find "memory budget" and "oom_device" or message:find "out of memory" and "oom_host"
      or message:find "not enough memory" and "oom_host" or "failed"
    result = { outcome = outcome, message = message }
  end
  io.stdout:write(json.encode(result), "\n")
end

-- Runs the trial and waits at most `timeout` seconds. Returns {outcome, message, loss, rates, tokens, seconds, peak, wall}.
function trial.run(spec, timeout)
  local exe = assert(system.realpath "/proc/self/exe")
  local code = ("require('onn.%s').main(%q)"):format("trial", json.encode(spec)) -- the child loads this same module
  local began = system.now()
  local child, message = system.spawn({ exe, "-e", code }, { timeout = timeout })
  local wall = system.now() - began
  if not child then return { outcome = "failed", message = message, wall = wall } end
  local result = child.status == 0 and child.signal == 0 and json.decode(child.stdout) or nil
  if type(result) ~= "table" then
    local words = child.stderr:gsub("\n.*", "")
    if child.timed_out then
      result = { outcome = "timeout", message = ("stopped after %.1f s"):format(timeout) }
    elseif child.signal == 9 or words:find "memory" then
      result = { outcome = "oom_host", message = words ~= "" and words or "killed by the system" }
    else
      result = { outcome = "failed", message = child.signal > 0 and ("ended by signal %d"):format(child.signal) or words }
    end
  end
  result.wall = wall
  return result
end

return trial
