-- What training says: the plan before, a line per update, the summary after. Text on stderr, results on stdout.
local cli = require "onn.cli"
local json = require "onn.core.json"
local limit = require "onn.limit"
local progress = require "onn.progress"
local system = require "onn.core.system"
local tensorboard = require "onn.tensorboard"
local tensors = require "onn.core.tensor"
local units = require "onn.units"

local report = {}

function report.plan(model, plans, machine, rates)
  cli.note("model     %s (%s): %s parameters, %d blocks, %s arithmetic", model.path, model.family, units.count(model:parameters()),
    model.sizes.layers, model.dtype)
  cli.note("plan      weights %s + optimizer %s + tapes %s + working %s = %s of %s; micro-batch %d, %s",
    units.bytes(plans.weights), units.bytes(plans.state), units.bytes(plans.tape), units.bytes(plans.working), units.bytes(plans.peak),
    units.bytes(machine.budget), plans.micro_batch, not plans.recompute and "activations kept"
      or plans.kept > 0 and ("activations of %d blocks kept, of %d rebuilt"):format(plans.kept, plans.rebuilt) or "activations rebuilt")
  if plans.slots then
    local spilled = plans.spill_written > 0 and ("; carries beyond %s are spilled, %s"):format(units.bytes(plans.carries_ram),
      units.bytes(plans.spill_written)) or ""
    cli.note("streamed  %s of weights pass through %d slots of %s%s: %s are read for an update%s", units.bytes(plans.streamed), plans.slots,
      units.bytes(plans.slot), plans.tile and ", matrices in row tiles" or "", units.bytes(plans.bytes_per_step), spilled)
  end
  local function line(what, flops, bytes, seconds)
    cli.note("limit     %s%s for an update at %s%s; about %s", what, units.operations(flops), units.flops(rates.flops),
      bytes > 0 and (", %s read at %s"):format(units.bytes(bytes), units.rate(rates.disk())) or "", units.seconds(seconds))
  end
  line("", plans.flops_per_token * plans.tokens_per_step, plans.bytes_per_step, plans.seconds_per_step)
  if plans.suffix_seconds_per_step then
    line("once the frozen stages' output is known: ", plans.suffix_flops_per_token * plans.tokens_per_step, plans.suffix_bytes_per_step,
      plans.suffix_seconds_per_step)
  end
end

-- A progress callback for Model:load.
function report.loading(total)
  local bar = progress.new { total = total, label = "loading", unit = "stages", quiet = cli.is_quiet(), after = 1 }
  return function(done)
    bar:update(done)
    if done == total then bar:finish() end
  end
end

-- A number as JSON takes it.
local function finite(x) return x and (x == x and math.abs(x) < math.huge and x or json.null) end

local Log = {}
Log.__index = Log

-- facts: {total (updates), plan, rates (onn.limit's), first (updates done before)}.
function report.training_log(opt, facts)
  local self = setmetatable({ opt = opt, facts = facts, losses = {}, tokens = 0, seconds = 0, work = {},
    known = { updates = 0, seconds = 0, least = 0 }, known_seconds = {}, walked = { updates = 0, seconds = 0, least = 0 } }, Log)
  if opt.log then
    local file, message = io.open(opt.log, facts.first > 0 and "a" or "w")
    self.file = cli.check(file, "--log " .. tostring(message)) -- io.open's third value is no exit status
  end
  if opt.tensorboard then self.board = cli.check(tensorboard.open(opt.tensorboard)) end
  self.bar = progress.new { total = facts.total, label = "train", unit = "steps", quiet = cli.is_quiet() }
  return self
end

-- The operations and bytes of an update: what its frozen prefix's cache gave was not computed again.
local function work_of(plans, r)
  local known = r.prefix_tokens or 0
  local suffix = plans.suffix_flops_per_token or 0
  return { flops = (r.tokens - known) * plans.flops_per_token + known * suffix + r.filled_tokens * (plans.flops_per_token - suffix),
    bytes_read = r.bytes_streamed + r.bytes_fetched, bytes_written = r.bytes_spilled, bytes_streamed = r.bytes_streamed,
    bytes_fetched = r.bytes_fetched }
end

function Log:step(r)
  local facts = self.facts
  self.tokens, self.seconds = self.tokens + r.tokens, self.seconds + r.seconds
  local rate = r.tokens / r.seconds
  local work = work_of(facts.plan, r)
  local share, bound = limit.share(work, facts.rates, r.seconds)
  for key, value in pairs(work) do self.work[key] = (self.work[key] or 0) + value end
  local kind = (r.prefix_tokens or 0) == r.tokens and r.filled_tokens == 0 and self.known or self.walked
  kind.updates, kind.seconds, kind.least = kind.updates + 1, kind.seconds + r.seconds, kind.least + share * r.seconds
  if kind == self.known then table.insert(self.known_seconds, r.seconds) end
  self.last_step = r.step
  if not r.skipped then self.losses[#self.losses + 1] = { r.step, r.loss } end
  self.rates, self.step_seconds = self.rates or {}, self.step_seconds or {}
  self.step_seconds[#self.step_seconds + 1] = r.seconds
  self.rates[#self.rates + 1] = rate
  local memory = tensors.memory()
  if self.file then
    local ok, message = self.file:write(json.encode { step = r.step, epoch = r.epoch, loss = finite(r.loss), lr = r.lr,
      grad_norm = finite(r.grad_norm), recomputed = facts.plan.recompute,
      tokens = r.tokens, tokens_per_s = rate, seconds = r.seconds, bytes_streamed = r.bytes_streamed, bytes_spilled = r.bytes_spilled,
      bytes_fetched = r.bytes_fetched, prefix_tokens = r.prefix_tokens, device_peak = memory.peak, ram_peak = system.peak_rss(), limit_share = share,
      bound = bound, skipped = r.skipped }, "\n")
    if ok then ok, message = self.file:flush() end
    if not ok and not self.log_failed then
      self.log_failed = true
      cli.note("--log %s: %s; training goes on, the log may have gaps", self.opt.log, message)
    end
  end
  if self.board then
    self:scalars(r.step, { loss = r.loss, lr = r.lr, grad_norm = r.grad_norm, tokens_per_s = rate, limit_share = share,
      device_peak = memory.peak })
  end
  self.bar:update(r.step, ("loss %.4f  lr %.2e  |g| %.3f  %.0f %s/s%s  %.0f %% of the limit (%s)  %s"):format(r.loss, r.lr, r.grad_norm,
    rate, facts.plan.unit or "tok", r.bytes_streamed > 0 and "  " .. units.rate(r.bytes_streamed / r.seconds) or "", 100 * share, bound,
    units.bytes(memory.peak)))
  if r.skipped then cli.note("step %d skipped: its loss or gradient is not finite", r.step) end
end

function Log:scalars(step, values)
  local ok, message = self.board:scalars(step, values)
  if not ok and not self.board_failed then
    self.board_failed = true
    cli.note("--tensorboard %s; training goes on, the events may have gaps", message)
  end
end

function Log:evaluated(loss, accuracy)
  if loss and self.board then self:scalars(self.last_step, { eval_loss = loss, eval_accuracy = accuracy }) end
  if loss then
    cli.note("step %d  held-out loss %.4f%s", self.last_step, loss, accuracy and (", accuracy %.2f %%"):format(100 * accuracy) or "")
  end
end

-- What knowing the frozen stages' output has brought, against what bytes and operations allow: their limits' ratio. `known` holds the
-- seconds and limits of updates that found all of it, `walked` those of updates that had to walk through the frozen stages.
local function prefix_line(plans, rates, known, walked)
  local _, _, without = limit.share({ flops = plans.flops_per_token * plans.tokens_per_step, bytes_read = plans.uncached_bytes_per_step },
    rates, 1)
  local allowed = without / (known.least / known.updates)
  local reached = allowed * (known.least / known.seconds) / (walked.least / walked.seconds)
  cli.print(("prefix    known in %d of %d updates: %s each, %.1f x as fast as walking through the frozen stages (bytes and operations give %.1f x)")
    :format(known.updates, known.updates + walked.updates, units.seconds(known.seconds / known.updates), reached, allowed))
  return reached, allowed
end

-- All that limit.share weighs, each at its rate.
local function work_line(work, rates)
  local parts = { ("%s at %s"):format(units.operations(work.flops), units.flops(rates.flops)) }
  if work.bytes_read > 0 then parts[#parts + 1] = ("%s read at %s"):format(units.bytes(work.bytes_read), units.rate(rates.disk())) end
  if work.bytes_written > 0 then
    parts[#parts + 1] = ("%s written at %s"):format(units.bytes(work.bytes_written), units.rate(rates.write()))
  end
  return table.concat(parts, ", ")
end

local function median(list)
  local sorted = {}
  for i, v in ipairs(list or {}) do sorted[i] = v end
  table.sort(sorted)
  return sorted[math.ceil(#sorted / 2)]
end

-- The end of a run: a curve on a terminal, figures, and where the result is. In JSON bytes_streamed (weights), bytes_spilled and
-- bytes_fetched (carries to the scratch file and back) are the sums of the log's keys of the same names. seconds_per_step is the median
-- of all updates; predicted_seconds_per_step is of one that walks through all stages. With a prefix cache known_seconds is the median
-- of the updates that found the frozen stages' output known, predicted_known_seconds what the plan said of them.
function Log:summary(session, out, peak, plot)
  self.bar:finish()
  if self.file then self.file:close() end
  if self.board then self.board:close() end
  local rate = median(self.rates)
  local share, bound, least
  if rate then share, bound, least = limit.share(self.work, self.facts.rates, self.seconds) end
  local first, last = self.losses[1], self.losses[#self.losses]
  local result = { out = out, steps = session.step, skipped = session.skipped,
    loss_first = first and first[2], loss_last = last and last[2],
    eval_before = finite(self.before), eval_after = finite(self.after), eval_accuracy = self.accuracy,
    tokens = self.tokens, seconds = self.seconds, tokens_per_s = rate,
    limit_share = share, limit_seconds = least, bound = bound, bytes_streamed = self.work.bytes_streamed, bytes_spilled = self.work.bytes_written,
    bytes_fetched = self.work.bytes_fetched, flops = self.work.flops,
    peak_flops = self.facts.rates.flops, disk_bytes_per_s = (self.work.bytes_read or 0) > 0 and self.facts.rates.disk() or nil,
    disk_write_bytes_per_s = (self.work.bytes_written or 0) > 0 and self.facts.rates.write() or nil,
    seconds_per_step = median(self.step_seconds), predicted_seconds_per_step = self.facts.plan.seconds_per_step,
    known_seconds = median(self.known_seconds), predicted_known_seconds = self.facts.plan.suffix_seconds_per_step,
    device_peak = peak, predicted_peak = self.facts.plan.peak, ram_peak = system.peak_rss(), trained_parameters = self.facts.plan.parameters }
  if cli.wants_json() then return cli.json(result) end
  if #self.losses > 2 and not cli.is_quiet() then io.stderr:write(plot.line(self.losses, { title = "loss" }), "\n") end
  if first then cli.print(("loss      %.4f -> %.4f over %d steps"):format(first[2], last[2], session.step)) end
  if self.before and self.after then cli.print(("held out  %.4f -> %.4f"):format(self.before, self.after)) end
  if self.accuracy then cli.print(("accuracy  %.2f %% of the held-out images"):format(100 * self.accuracy)) end
  if rate then
    cli.print(("speed     %.0f %s/s; peak %s, predicted %s"):format(rate, self.facts.plan.unit or "tokens", units.bytes(peak),
      units.bytes(self.facts.plan.peak)))
    cli.print(("limit     %.0f %% of it, bound by %s: %s took %s"):format(100 * share, bound, work_line(self.work, self.facts.rates),
      units.seconds(self.seconds)))
  end
  if self.known.updates > 0 and self.walked.updates > 0 then
    prefix_line(self.facts.plan, self.facts.rates, self.known, self.walked)
  end
  if session.skipped > 0 then cli.print(("skipped   %d updates were not finite"):format(session.skipped)) end
  cli.print("written   " .. out)
end

return report
