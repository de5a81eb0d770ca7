-- optimize: finds the settings that train a model fastest on this machine, and writes them down
local cli = require "onn.cli"
local demo_model = require "onn.demo_model"
local Optimizer = require "onn.optimizer"
local page = require "onn.optimize_page"
local profile = require "onn.profile"
local progress = require "onn.progress"
local system = require "onn.core.system"
local units = require "onn.units"

local opt = cli.parse {
  name = "optimize",
  summary = "Times real updates of MODEL under different micro-batches, threads and recomputing, and chunks and slots where it is larger "
    .. "than memory; writes universal_config.json, which train and generate then use. What is learnt stays the same.",
  example = "onn optimize models/smollm2 questions.jsonl --budget 60s --report search.html",
  arguments = { { "MODEL", "model directory; without it a small built-in model", optional = true },
    { "DATA", "training data; without it random tokens in rows of --seq-len", optional = true } },
  options = {
    { "budget", type = "duration", default = 60, min = 2, help = "time for all of it" },
    { "out", type = "string", metavar = "FILE", help = "file or directory to write to (default: the model's directory)" },
    { "report", type = "string", metavar = "FILE.html", help = "also write a page with charts" },
    { "batch", type = "integer", default = 8, min = 1, help = "rows per update, as training will take them" },
    { "seq-len", type = "integer", default = 512, min = 2, help = "longest sequence in tokens" },
    { "rank", type = "integer", default = 8, min = 1, max = 1024, help = "rank of the adapters" },
    { "layers", type = "string", default = "all", help = "blocks that are trained; see `onn train --help`" },
    { "count", type = "integer", min = 1, help = "how many layers a heuristic keeps" },
    { "ratio", type = "share", help = "share of the layers a heuristic keeps (default 0.2)" },
    { "pack", optional = true, type = "string", choices = { "best-fit", "stream" }, help = "pack rows, as training will" },
    { "micro-batch", type = "integer", min = 1, help = "keep this micro-batch" },
    { "recompute", type = "string", choices = { "on", "off" }, help = "keep activations rebuilt, or kept" },
  },
}

local path = opt.model
if not path then
  local directory, pretrained = demo_model.directory()
  path = cli.check(directory, pretrained)
  cli.note("model     the built-in one%s: %s", pretrained and "" or ", with random weights", path)
end
local options = { data = opt.data }
for _, key in ipairs { "memory", "ram", "threads", "dtype", "seed", "batch", "seq_len", "rank", "layers", "count", "ratio", "pack",
  "micro_batch", "recompute" } do options[key] = opt[key] end
-- The library raises its own misuse and the user's alike; here all of it is the user's, and one line says it.
local function one_line(e)
  if type(e) ~= "string" then error(e, 0) end
  return (e:gsub("\nstack traceback.*", ""):gsub("^%S+%.lua:%d+: ", ""))
end
local function attempt(f, ...)
  local ok, result = pcall(f, ...)
  return ok and result or cli.fail(one_line(result))
end
local optimizer = attempt(Optimizer.new, path, options)
if opt.dry_run then
  local plan = require("onn.plan").training(optimizer.model, { batch = opt.batch, micro_batch = opt.micro_batch,
    seq_len = optimizer.opt.seq_len, rank = opt.rank, layers = optimizer.layers, recompute = opt.recompute, budget = optimizer.budget })
  cli.note("default   micro-batch %d, %s, %s: would be timed against others for at most %s", plan.micro_batch,
    plan.recompute and "activations rebuilt" or "activations kept", units.bytes(plan.peak), units.seconds(opt.budget))
  if opt.json then cli.json(plan) end
  os.exit(0)
end

local bar
local function show(done, total, c)
  bar = bar or progress.new { total = total, label = "search", unit = "trials", quiet = opt.quiet, every = 0 }
  bar.total = total
  bar:update(done, done > 0 and ("%s  %s"):format(page.label(c), c.median and ("%.0f tokens/s"):format(c.median) or c.outcome) or "")
end
local function note(text) cli.note("%s", text) end
local function find() return optimizer:find_optimal_config { budget = opt.budget, note = note, progress = show } end
local found = attempt(find)
if bar then bar:finish() end
local saved, written = pcall(optimizer.save_config, optimizer, found, opt.out)
if not saved then
  if opt.out then cli.fail(one_line(written)) end
  cli.note("%s; the current directory takes it", one_line(written))
  written = attempt(optimizer.save_config, optimizer, found, ".")
end
if opt.report then
  local text = page.render(found, profile.get { all = true, quiet = true }, "onn optimize " .. path)
  cli.check(system.write_file(opt.report, text))
end
if opt.json then
  cli.json(found)
  os.exit(0)
end

local s, c = found.search, found.config
cli.print "ranked by tokens/s (* on the Pareto front of speed and memory)"
for i, t in ipairs(s.trials) do
  t.rank, t.settings = i, page.label(t) .. (t.default and " (default)" or "")
  t.of_default = t.tokens_per_s and t.tokens_per_s / s.default_tokens_per_s
  t.peak, t.mark, t.note = t.peak_mb and units.bytes(t.peak_mb * 1e6), t.pareto and "*" or "", t.outcome
  t.off = t.seconds and not t.default and 100 * (t.predicted_seconds / t.seconds - 1) or nil
end
cli.print(cli.table(s.trials, { { "rank", title = "#", format = "%d" }, "settings", { "tokens_per_s", title = "tokens/s", format = "%.0f" },
  { "deviation", title = "+-", format = "%.0f" }, { "of_default", title = "of default", format = "%.2f" },
  { "peak", align = "right" }, { "mark", title = "" }, { "updates", format = "%d" },
  { "off", title = "predicted", format = "%+.0f %%", align = "right" }, { "note", title = "outcome" } }))
if s.prediction.median_error then
  cli.print(("\nprediction: median error %.0f %%%s over %d settings"):format(100 * s.prediction.median_error,
    s.prediction.rank_correlation and (", rank correlation %.2f"):format(s.prediction.rank_correlation) or "", s.prediction.trials))
end
local micro = type(c.micro_batch) == "number" and tostring(c.micro_batch) or "as the plan says"
cli.print(("\nchosen: micro-batch %s, activations %s, threads %d"):format(micro, c.gradient_checkpointing and "rebuilt" or "kept",
  c.threads))
for _, line in ipairs(s.reasons) do cli.print("  " .. line) end
cli.print "\nno effect:"
for _, line in ipairs(s.no_effect) do cli.print("  " .. line) end
local e = s.scores
cli.print(("\nequitable scores: efficiency %.4g, speed %.4g, memory %.4g, overall %.4g"):format(e.efficiency, e.speed, e.memory, e.overall))
cli.print(("  of loss %.4f, %s parameters, %.3g samples/s, batch %d, %s available, %s peak"):format(e.inputs.loss,
  units.count(e.inputs.num_parameters), e.inputs.samples_per_second, e.inputs.batch_size, units.bytes(e.inputs.available_memory),
  units.bytes(e.inputs.peak_memory)))
for _, line in ipairs(e.misleading) do cli.print("  misleading: " .. line) end
cli.print(("\nwritten   %s, after %s"):format(written, units.seconds(s.seconds)))
