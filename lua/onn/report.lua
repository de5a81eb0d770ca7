-- What training says: the plan before, a line per update, the summary after. Text on stderr, results on stdout.
local cli = require "onn.cli"
local json = require "onn.core.json"
local progress = require "onn.progress"
local tensorboard = require "onn.tensorboard"
local tensors = require "onn.core.tensor"
local units = require "onn.units"

local report = {}

function report.plan(model, plans, machine, peak_flops)
  cli.note("model     %s (%s): %s parameters, %d blocks, %s arithmetic", model.path, model.family, units.count(model:parameters()),
    model.sizes.layers, model.dtype)
  cli.note("plan      weights %s + optimizer %s + tapes %s + working %s = %s of %s; micro-batch %d, %s",
    units.bytes(plans.weights), units.bytes(plans.state), units.bytes(plans.tape), units.bytes(plans.working), units.bytes(plans.peak),
    units.bytes(machine.budget), plans.micro_batch, plans.recompute and "activations rebuilt" or "activations kept")
  cli.note("limit     %s per token; at this machine's %s that is %.0f tokens/s", units.operations(plans.flops_per_token),
    units.flops(peak_flops), peak_flops / plans.flops_per_token)
end

function report.too_large(plans, machine)
  return ("this run needs about %s, the budget is %s: try --recompute on, a smaller --micro-batch or --seq-len, or --memory"):format(
    units.bytes(plans.peak), units.bytes(machine.budget))
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

-- facts: {total (updates), plan, peak_flops, first (updates done before)}.
function report.training_log(opt, facts)
  local self = setmetatable({ opt = opt, facts = facts, losses = {}, tokens = 0, seconds = 0 }, Log)
  if opt.log then
    local file, message = io.open(opt.log, facts.first > 0 and "a" or "w")
    self.file = cli.check(file, "--log " .. tostring(message)) -- io.open's third value is no exit status
  end
  if opt.tensorboard then self.board = cli.check(tensorboard.open(opt.tensorboard)) end
  self.bar = progress.new { total = facts.total, label = "train", unit = "steps", quiet = cli.is_quiet() }
  return self
end

function Log:step(r)
  local facts = self.facts
  self.tokens, self.seconds = self.tokens + r.tokens, self.seconds + r.seconds
  local rate = r.tokens / r.seconds
  local share = rate * facts.plan.flops_per_token / facts.peak_flops
  self.last_step = r.step
  if not r.skipped then self.losses[#self.losses + 1] = { r.step, r.loss } end
  self.rates = self.rates or {}
  self.rates[#self.rates + 1] = rate
  local memory = tensors.memory()
  if self.file then
    local ok, message = self.file:write(json.encode { step = r.step, epoch = r.epoch, loss = finite(r.loss), lr = r.lr,
      grad_norm = finite(r.grad_norm), recomputed = facts.plan.recompute,
      tokens = r.tokens, tokens_per_s = rate, seconds = r.seconds, bytes_streamed = 0, device_peak = memory.peak,
      ram_peak = require("onn.core.system").peak_rss(), limit_share = share, bound = "compute", skipped = r.skipped }, "\n")
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
  self.bar:update(r.step, ("loss %.4f  lr %.2e  |g| %.3f  %.0f tok/s  %.0f %% of the limit  %s"):format(r.loss, r.lr, r.grad_norm, rate,
    100 * share, units.bytes(memory.peak)))
  if r.skipped then cli.note("step %d skipped: its loss or gradient is not finite", r.step) end
end

function Log:scalars(step, values)
  local ok, message = self.board:scalars(step, values)
  if not ok and not self.board_failed then
    self.board_failed = true
    cli.note("--tensorboard %s; training goes on, the events may have gaps", message)
  end
end

function Log:evaluated(loss)
  if loss and self.board then self:scalars(self.last_step, { eval_loss = loss }) end
  if loss then cli.note("step %d  held-out loss %.4f", self.last_step, loss) end
end

local function median(list)
  local sorted = {}
  for i, v in ipairs(list or {}) do sorted[i] = v end
  table.sort(sorted)
  return sorted[math.ceil(#sorted / 2)]
end

-- The end of a run: a curve on a terminal, figures, and where the result is.
function Log:summary(session, out, peak, plot)
  self.bar:finish()
  if self.file then self.file:close() end
  if self.board then self.board:close() end
  local rate = median(self.rates)
  local share = rate and rate * self.facts.plan.flops_per_token / self.facts.peak_flops
  local first, last = self.losses[1], self.losses[#self.losses]
  local result = { out = out, steps = session.step, skipped = session.skipped,
    loss_first = first and first[2], loss_last = last and last[2],
    eval_before = finite(self.before), eval_after = finite(self.after), tokens = self.tokens, seconds = self.seconds, tokens_per_s = rate,
    limit_share = share, bound = "compute", device_peak = peak, predicted_peak = self.facts.plan.peak,
    ram_peak = require("onn.core.system").peak_rss(), trained_parameters = self.facts.plan.parameters }
  if cli.wants_json() then return cli.json(result) end
  if #self.losses > 2 and not cli.is_quiet() then io.stderr:write(plot.line(self.losses, { title = "loss" }), "\n") end
  if first then cli.print(("loss      %.4f -> %.4f over %d steps"):format(first[2], last[2], session.step)) end
  if self.before and self.after then cli.print(("held out  %.4f -> %.4f"):format(self.before, self.after)) end
  if rate then
    cli.print(("speed     %.0f tokens/s, %.0f %% of the limit (bound by arithmetic); peak %s, predicted %s"):format(rate, 100 * share,
      units.bytes(peak), units.bytes(self.facts.plan.peak)))
  end
  if session.skipped > 0 then cli.print(("skipped   %d updates were not finite"):format(session.skipped)) end
  cli.print("written   " .. out)
end

return report
