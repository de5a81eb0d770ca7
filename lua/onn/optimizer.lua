-- onn.optimizer: the settings that train a model fastest on this machine, found by timing real updates.
--   local optimizer = require("onn.optimizer").new("models/phi-4")
--   local config = optimizer:find_optimal_config { budget = "60s" }
--   optimizer:save_config(config); print(optimizer:benchmark())
local data = require "onn.data"
local inspect = require "onn.inspect"
local json = require "onn.core.json"
local layers = require "onn.layers"
local limit = require "onn.limit"
local nearest = require "onn.nearest"
local profile = require "onn.profile"
local runtime = require "onn.runtime"
local scores = require "onn.scores"
local search = require "onn.search"
local settings = require "onn.settings"
local system = require "onn.core.system"
local Tokenizer = require "onn.tokenizer"
local trial = require "onn.trial"
local units = require "onn.units"

local Optimizer = {}
Optimizer.__index = Optimizer

local known = { "memory", "ram", "threads", "dtype", "seed", "batch", "seq_len", "rank", "layers", "count", "ratio", "data", "pack",
  "micro_batch", "recompute" }

-- What the settings' file holds and this run does not use; plan: the winner's.
local function no_effect(plan)
  local list = json.array { "use_pinned_memory, use_memory_mapping: weights are read past the page cache, into slots, or once at the start" }
  if not plan.slots then
    table.insert(list, 1, "chunk_size: the model rests whole in memory, so nothing is brought in chunks and chunk and slots were not "
      .. "searched; it is written as the number of layers")
  end
  return list
end

-- path: a model that can be run. options: batch (8 rows per update), seq_len (512), rank (8), layers ("all"), data (a file; without it
-- random tokens), micro_batch, recompute, threads (fixed if given), memory, ram, dtype, seed, pack. Raises with one line when the model
-- cannot be run.
function Optimizer.new(path, options)
  options = options or {}
  nearest.check(options, known, "optimizer.new")
  local opt = { batch = 8, seq_len = 512, rank = 8, layers = "all", dtype = "auto", seed = 0 }
  for k, v in pairs(options) do opt[k] = v end
  for _, key in ipairs { "memory", "ram" } do
    if type(opt[key]) == "string" then opt[key] = assert(units.parse_bytes(opt[key])) end
  end
  local self = setmetatable({ opt = opt }, Optimizer)
  local analysis, model = inspect.analyse(path, { dtype = opt.dtype })
  if not analysis then error(model, 0) end
  if not analysis.runnable then error(model:why_not(), 0) end
  if model:unfit "tokens" then error(model:unfit "tokens", 0) end
  self.analysis, self.model = analysis, model
  self.budget = math.min(opt.memory or math.huge, opt.ram or math.huge, runtime.default_budget())
  opt.seq_len = math.min(opt.seq_len, model.sizes.positions)
  local set, wrong = layers.parse(opt.layers, model, opt)
  if set == false then error(wrong, 0) end
  self.layers = set
  return self
end

-- Mean tokens of one row of training, from the data or the length, and the share of them that is trained on.
local function tokens_per_row(self)
  local opt = self.opt
  if not opt.data then return opt.seq_len, 1 end
  local tokenizer = not opt.data:find "%.safetensors$" and assert(Tokenizer.open(self.model.directory)) or nil
  local set = assert(data.open(opt.data, tokenizer, opt))
  return set.tokens / #data.rows(set, { pack = opt.pack, seq_len = opt.seq_len }), data.supervised(set)
end

-- Rows of a trial's update: the batch, or less where one update would take more than a twentieth of the budget, by an update of one row.
local function trial_rows(self, budget)
  local opt, rows = self.opt, self.opt.batch
  local pilot = trial.run({ model = self.model.path, dtype = self.model.dtype, data = opt.data, pack = opt.pack, batch = 1, micro_batch = 1,
    seq_len = opt.seq_len, recompute = opt.recompute or "auto", threads = opt.threads or system.cpu_count(), rank = opt.rank,
    layers = opt.layers, seed = opt.seed, memory = self.budget, steps = 1, limit = 0 }, budget / 2)
  local each = pilot.outcome == "ok" and pilot.seconds[1] / pilot.tokens[1] * self.row_tokens
    or pilot.outcome == "timeout" and budget or 0 -- what fails otherwise fails again, and is told, in the search
  while rows > 1 and rows * each > budget / 20 do
    repeat rows = rows - 1 until opt.batch % rows == 0
  end
  return rows
end

-- One candidate as tables show it.
local function entry(c, result)
  return { micro_batch = c.micro_batch, recompute = c.recompute, blocks_kept = c.plan.kept, threads = c.threads,
    chunk = c.plan.chunk or nil, tile = c.plan.tile or nil, slots = c.plan.slots, bytes_read = c.bytes_read, outcome = c.outcome, message = c.message,
    tokens_per_s = c.median, deviation = c.spread and c.spread.deviation, updates = #c.rates, peak_mb = c.peak and c.peak / 1e6,
    predicted_seconds = c.predicted, seconds = c.median and result.tokens / c.median,
    loss = c.loss, default = c.default, pareto = c.pareto, winner = c == result.winner or nil }
end

-- Why the winner is as fast as it is: what its arithmetic and its reads need at least, against what was measured.
local function roofline(self, p, c, tokens)
  local weights, micros = c.plan.streamed or c.plan.weights, math.max(1, tokens / self.row_tokens / c.micro_batch)
  local sweeps = 2 + (c.recompute and 1 or 0)
  local peak = profile.peak_flops(p, self.model.dtype)
  local r = { tokens = tokens, flops = c.plan.flops_per_token * tokens, peak_flops = peak, bytes = weights * sweeps * micros,
    bandwidth = profile.memory_rate(p, "read", weights), seconds = tokens / c.median }
  r.compute_seconds, r.memory_seconds = r.flops / r.peak_flops, r.bytes / r.bandwidth
  r.disk_read, r.disk_written, r.disk_seconds = c.bytes_read or 0, c.bytes_written or 0, 0
  if r.disk_read + r.disk_written > 0 then
    r.disk_seconds = r.disk_read / self.rates.disk() + r.disk_written / self.rates.write()
  end
  r.limit_seconds = math.max(r.compute_seconds, r.memory_seconds, r.disk_seconds)
  r.bound = r.disk_seconds == r.limit_seconds and "disk" or r.compute_seconds >= r.memory_seconds and "compute" or "memory"
  r.limit_share = r.limit_seconds / r.seconds
  return r
end

local function reasons(result, roof)
  local default, winner, list = result.default, result.winner, {}
  if winner == default then
    local other = result.ranked[1] ~= default and result.ranked[1] or result.ranked[2]
    list[1] = other and ("the default stays: nothing was faster by more than the noise (the nearest reached %.0f %% of it)"):format(
      100 * other.median / default.median) or "the default stays: the budget allowed no other trial"
  else
    list[1] = ("%.2f x the default's speed"):format(winner.median / default.median)
    if winner.threads ~= default.threads then
      list[#list + 1] = ("%d threads instead of %d"):format(winner.threads, default.threads)
    end
    if winner.plan.slots and (winner.plan.chunk ~= default.plan.chunk or winner.plan.slots ~= default.plan.slots) then
      list[#list + 1] = ("%d slots of %s: %s read for an update instead of %s"):format(winner.plan.slots, units.bytes(winner.plan.slot),
        units.bytes(winner.bytes_read), units.bytes(default.bytes_read))
    end
    if winner.plan.flops_per_token ~= default.plan.flops_per_token then
      list[#list + 1] = ("%s per token instead of %s"):format(units.operations(winner.plan.flops_per_token),
        units.operations(default.plan.flops_per_token))
    end
    if winner.micro_batch ~= default.micro_batch then
      list[#list + 1] = ("micro-batches of %d instead of %d rows: tapes of %s instead of %s"):format(winner.micro_batch,
        default.micro_batch, units.bytes(winner.plan.tape), units.bytes(default.plan.tape))
    end
  end
  list[#list + 1] = ("an update of %.0f tokens is %s: %s at %s"):format(roof.tokens, units.operations(roof.flops),
    units.seconds(roof.compute_seconds), units.flops(roof.peak_flops))
  list[#list + 1] = ("it reads %s of weights: %s at %s"):format(units.bytes(roof.bytes), units.seconds(roof.memory_seconds),
    units.rate(roof.bandwidth))
  if roof.disk_read + roof.disk_written > 0 then
    list[#list + 1] = ("and %s from disk, %s to it: %s"):format(units.bytes(roof.disk_read), units.bytes(roof.disk_written),
      units.seconds(roof.disk_seconds))
  end
  list[#list + 1] = ("it took %s: %.0f %% of the limit, bound by %s"):format(units.seconds(roof.seconds), 100 * roof.limit_share,
    roof.bound)
  return list
end

local function equitable(self, c, loss)
  local facts = { loss = loss, num_parameters = self.analysis.total_params, samples_per_second = c.median / self.row_tokens,
    batch_size = self.opt.batch, available_memory = system.available_ram(), peak_memory = c.peak }
  local s = scores.equitable(facts)
  s.inputs = facts
  s.misleading = json.array(s.misleading)
  return s
end

local function active_layers(self)
  local list = json.array {}
  for index = 0, self.model.sizes.layers - 1 do
    if not self.layers or self.layers[index] then list[#list + 1] = index end
  end
  return list
end

local function storage_dtype(analysis)
  local best, most = nil, 0
  for dtype, count in pairs(analysis.dtypes) do if count > most then best, most = dtype:lower(), count end end
  return best
end

-- A micro-batch that was the whole of a shortened update says nothing of larger ones: the plan then chooses, as without a file.
local function micro_batch_to_keep(self, c, rows)
  return c.micro_batch == rows and rows < self.opt.batch and json.null or c.micro_batch
end

-- Measures the machine, times trials within `budget` ("60s" or seconds, everything included) and returns what universal_config.json
-- holds: {architecture, hardware, config, search}. options: budget, note (hears one line), progress(done, total, candidate).
-- Raises with one line when the default settings themselves cannot be run.
function Optimizer:find_optimal_config(options)
  options = nearest.check(options or {}, { "budget", "note", "progress" }, "find_optimal_config")
  local budget = options.budget or 60
  if type(budget) == "string" then budget = assert(units.parse_duration(budget)) end
  local opt, began = self.opt, system.now()
  local note = options.note or function() end
  local p = profile.get { all = true, note = function(name) note("measuring " .. name) end }
  if profile.doubt(p) then note(profile.doubt(p)) end
  self.profile, self.rates = p, limit.rates(self.model)
  self.row_tokens, self.supervised = tokens_per_row(self)
  local rows = trial_rows(self, budget)
  if rows < opt.batch then
    note(("trials take updates of %d rows instead of %d, so that several fit into %s; training keeps %d"):format(rows, opt.batch,
      units.seconds(budget), opt.batch))
  end
  local s = { path = self.model.path, model = self.model, profile = p, rates = self.rates, budget = self.budget, rows = rows,
    deadline = began + 0.95 * budget - 0.2, row_tokens = self.row_tokens, supervised = self.supervised, seq_len = opt.seq_len, rank = opt.rank,
    layers = self.layers,
    layers_text = opt.layers, data = opt.data, pack = opt.pack, seed = opt.seed, progress = options.progress,
    fixed = { micro_batch = opt.micro_batch, recompute = opt.recompute, threads = opt.threads } }
  local before = profile.processors_left()
  local result, message = search.run(s)
  if not result then error(message, 0) end
  local left = math.min(before, profile.processors_left())
  if left < profile.quiet_share then
    note(("other programs ran meanwhile, %.0f %% of the processors were left: run this again when the machine is quiet"):format(
      100 * left))
  end
  local c = result.winner
  local roof = roofline(self, p, c, result.tokens)
  local trials, front = json.array {}, json.array {}
  for _, one in ipairs(result.ranked) do trials[#trials + 1] = entry(one, result) end
  for _, one in ipairs(result.all) do if one.outcome ~= "ok" then trials[#trials + 1] = entry(one, result) end end
  for _, one in ipairs(result.front) do front[#front + 1] = entry(one, result) end
  local active = active_layers(self)
  self.found = { architecture = inspect.summary(self.analysis), hardware = profile.hardware(p), config = {
    chunk_size = c.plan.chunk or c.plan.slots and 1 or self.model.sizes.layers, batch_size = opt.batch, use_pinned_memory = false, use_memory_mapping = false,
    gradient_checkpointing = c.mode == "on", compute_dtype = self.model.dtype, storage_dtype = storage_dtype(self.analysis),
    active_layers = active, layer_selection_strategy = opt.layers, layer_selection_ratio = #active / self.model.sizes.layers,
    estimated_vram_mb = c.peak / 1e6, estimated_time_per_sample_ms = 1000 * self.row_tokens / c.median,
    micro_batch = micro_batch_to_keep(self, c, rows), seq_len = opt.seq_len, threads = c.threads, rank = opt.rank,
    tokens_per_s = c.median },
    search = { trials = trials, pareto = front, roofline = roof, reasons = json.array(reasons(result, roof)),
      prediction = result.judgement, default_tokens_per_s = result.default.median, rows_per_trial_update = rows,
      tokens_per_row = self.row_tokens, processors_left = left, data = opt.data or json.null, budget_seconds = budget,
      seconds = system.now() - began,
      no_effect = no_effect(c.plan), scores = equitable(self, c, c.loss) } }
  self.settings, self.searched = c, s
  return self.found
end

-- Writes what find_optimal_config gave; path: a file or directory (default: universal_config.json beside the model). Returns the
-- path.
function Optimizer:save_config(config, path)
  path = path or self.model.directory
  if system.isdir(path) then path = path:gsub("(.)/+$", "%1") .. "/" .. settings.file end
  assert(system.write_file(path, json.encode(config, { pretty = true }) .. "\n"))
  return path
end

local shown = {}
shown.__tostring = function(b)
  local s = b.scores
  return ("%.0f tokens/s (deviation %.0f), %.2f samples/s, peak %s\nequitable scores: efficiency %.4g, speed %.4g, memory %.4g, "
    .. "overall %.4g%s"):format(b.tokens_per_s, b.deviation, b.samples_per_s, units.bytes(b.peak), s.efficiency, s.speed, s.memory,
    s.overall, #s.misleading > 0 and "\nmisleading: " .. table.concat(s.misleading, "; ") or "")
end

-- Times the found settings once more (finding some first if need be): {tokens_per_s, deviation, samples_per_s, loss, peak,
-- scores};
-- tostring() of it is a short text.
function Optimizer:benchmark()
  if not self.settings then self:find_optimal_config {} end
  local c, opt, found = self.settings, self.opt, self.found
  local result = trial.run({ model = self.model.path, dtype = self.model.dtype, data = opt.data, pack = opt.pack,
    batch = found.search.rows_per_trial_update, seq_len = opt.seq_len, row_tokens = self.row_tokens, supervised = self.supervised,
    micro_batch = c.micro_batch, recompute = c.mode, threads = c.threads, chunk = c.chunk, slots = c.slots,
    rates = search.trial_rates(self.searched, c),
    rank = opt.rank, layers = opt.layers, seed = opt.seed, memory = self.budget, steps = 20, limit = 10 }, 120)
  if result.outcome ~= "ok" then error(("benchmark: %s (%s)"):format(result.message or "", result.outcome), 0) end
  local spread = require("onn.measure").spread(result.rates)
  local measured = { median = spread.median, peak = result.peak }
  return setmetatable({ tokens_per_s = spread.median, deviation = spread.deviation, samples_per_s = spread.median / self.row_tokens,
    loss = result.loss, peak = result.peak, scores = equitable(self, measured, result.loss) }, shown)
end

function Optimizer:close() self.model:close() end

return Optimizer
