-- benchmark: training, prompt processing and decoding in tokens/s, over lists of choices
local benchmark = require "onn.benchmark"
local cli = require "onn.cli"
local demo_model = require "onn.demo_model"
local json = require "onn.core.json"
local layers = require "onn.layers"
local limit = require "onn.limit"
local Model = require "onn.model"
local profile = require "onn.profile"
local progress = require "onn.progress"
local runtime = require "onn.runtime"
local seed_workload = require "onn.seed_workload"
local settings = require "onn.settings"
local units = require "onn.units"

local opt = cli.parse {
  name = "benchmark",
  summary = "Measures MODEL: LoRA training, prompt processing and decoding on random tokens. Lists of values are combined.",
  example = "onn benchmark models/smollm2 --batch 1,8 --seq-len 128,256 -o md\n  onn benchmark --workload seed --layers 2 --batch 1,8",
  arguments = { { "MODEL", "model directory; without it a small built-in model", optional = true } },
  options = {
    { "batch", type = "list", of = "integer", min = 1, help = "rows per update (default: 8; of the seed workload 1,8,64,128)" },
    { "chunk", type = "list", of = "integer", min = 1, default = { 1 }, help = "blocks that are read together where weights are streamed" },
    { "slots", type = "integer", min = 1, help = "stream the weights through so many slots (default: all in memory if they fit)" },
    { "prefetch", negate = true, default = true, help = "read ahead of the arithmetic" },
    { "seq-len", type = "list", of = "integer", min = 2, default = { 128 }, help = "tokens in a row" },
    { "prompt-tokens", type = "list", of = "integer", min = 1, default = { 512 }, help = "tokens of a prompt" },
    { "new-tokens", type = "list", of = "integer", min = 1, default = { 64 }, help = "tokens decoded after an empty prompt" },
    { "only", type = "string", choices = { "train", "generate" }, help = "leave out the other" },
    { "repeats", type = "integer", default = 3, min = 1, help = "runs of prompt and decoding, after one that is not counted" },
    { "steps", type = "integer", default = 3, min = 1, help = "updates, after one that is not counted" },
    { "rank", type = "integer", default = 8, min = 1, max = 1024, help = "rank of the adapters" },
    { "layers", type = "string", default = "all", help = "blocks that are trained; of the seed workload: how many of its 8 there are" },
    { "micro-batch", type = "integer", min = 1, help = "rows that go through together (default: what fits the budget)" },
    { "recompute", type = "string", default = "auto", choices = { "auto", "on", "off" }, help = "rebuild activations" },
    { "workload", type = "string", choices = { "seed" }, help = "the original's: 8 of phi-4's 40 layers, linear layers alone, 32 tokens" },
    { "output", short = "o", type = "string", default = "md", choices = { "md", "csv", "json" }, help = "form of the rows" },
  },
}
local seed = opt.workload == "seed"
if seed and opt.model then cli.fail("benchmark: --workload seed has its own model; leave MODEL out", 2) end
local path = opt.model
if not path and not seed then
  local directory, pretrained = demo_model.directory()
  path = cli.check(directory, pretrained)
  cli.note("model     the built-in one%s: %s", pretrained and "" or ", with random weights", path)
end
if path then settings.apply(opt, path, { threads = true, dtype = true }) end
local machine = runtime.apply(opt)
opt.budget = machine.budget

-- Measures, and says so when other programs took the processors meanwhile: speeds are then theirs too.
local function watched(p, rows, f)
  local before = profile.processors_left()
  f()
  local share = math.min(before, profile.processors_left())
  for _, row in ipairs(rows) do row.processors_left = share end
  if share < profile.quiet_share then
    cli.note("busy      other programs ran meanwhile, %.0f %% of the processors were left: the figures are low", 100 * share)
  end
  local doubt = profile.doubt(p)
  if doubt then cli.note("busy      %s", doubt) end
end

local function show(rows, columns)
  if opt.json or opt.output == "json" then return cli.json(json.array(rows)) end
  io.stdout:write(opt.output == "csv" and benchmark.csv(rows, columns) or benchmark.markdown(rows, columns), "\n")
end

-- --- the original's workload ---------------------------------------------------------------------------------------------
if seed then
  local count = opt.layers == "all" and seed_workload.layers or tonumber(opt.layers)
  if not count or count ~= math.floor(count) or count < 1 or count > 40 then
    cli.fail(("benchmark: --layers of the seed workload is a number from 1 to 40, got '%s'"):format(opt.layers), 2)
  end
  local batches, need = opt.batch or seed_workload.batches, seed_workload.bytes(count)
  local flops, samples = seed_workload.flops_per_sample(count), 0
  for _, batch in ipairs(batches) do samples = samples + batch end
  cli.note("workload  %d of phi-4's 40 layers, linear layers alone, %d tokens a sample, f32 arithmetic, weights %s in bf16: "
    .. "%s a sample", count, seed_workload.tokens_per_sample, units.bytes(need), units.operations(flops))
  if opt.dry_run then
    if opt.json then cli.json { layers = count, weight_bytes = need, gflop_per_sample = flops / 1e9, samples = samples } end
    os.exit(0)
  end
  if need * 1.15 > opt.budget then
    cli.fail(("the workload's weights take %s, the budget is %s: take fewer --layers"):format(units.bytes(need), units.bytes(opt.budget)))
  end
  local p = profile.get { all = true, quiet = opt.quiet }
  local peak = profile.peak_flops(p, "f32")
  cli.note("limit     %s a sample at this machine's %s; the whole run at least %s", units.seconds(flops / peak), units.flops(peak),
    units.seconds(flops / peak * samples * 2))
  local model = seed_workload.open(count, opt.seed)
  local rows = {}
  local bar = progress.new { total = #batches, label = "benchmark", unit = "rows", quiet = opt.quiet }
  watched(p, rows, function()
    for i, batch in ipairs(batches) do
      rows[i] = { workload = "seed", layers = count, batch = batch, device = "cpu", threads = machine.threads }
      benchmark.seed(rows[i], model, p, opt)
      bar:update(i, ("batch %d: %.0f ms a sample"):format(batch, rows[i].ms_per_sample))
    end
  end)
  bar:finish()
  model:close()
  local whole = seed_workload.true_model()
  for _, row in ipairs(rows) do
    row.true_model_gflop_per_sample, row.true_model_bytes = whole.flops_per_sample / 1e9, whole.bytes
    row.true_model_ms_per_sample_at_this_rate = whole.flops_per_sample / row.gflops / 1e6
  end
  show(rows, { "layers", "batch", "ms_per_sample", "deviation", "ms_per_sample_of_8_layers", "original_ms_per_sample", "gflop_per_sample",
    "gflops", "limit_share", "peak_bytes", "true_model_ms_per_sample_at_this_rate" })
  cli.note("original  %s, 8 layers, peak %s; its link moved 3.0 GB/s; here nothing is streamed", seed_workload.original.device,
    units.bytes(seed_workload.original.peak))
  cli.note("true model  all 40 layers forward, attention, head and loss, gradients back to layer 0: %s parameters, %s a "
    .. "sample, %.1f x this workload; its weights take %s in bf16", units.count(whole.parameters), units.operations(whole.flops_per_sample),
    whole.flops_per_sample / flops, units.bytes(whole.bytes))
  os.exit(0)
end

-- --- a model ---------------------------------------------------------------------------------------------------------------
local model = cli.check(Model.open(path, { dtype = opt.dtype }))
if #model.missing > 0 then cli.fail(model:why_not()) end
if model:unfit "tokens" then cli.fail(model:unfit "tokens") end
local chosen, wrong = layers.parse(opt.layers, model, opt)
if chosen == false then cli.fail(wrong, 2) end
opt.layers = chosen
for _, key in ipairs { "seq_len", "prompt_tokens", "new_tokens" } do
  local most, list = model.sizes.positions, {}
  for i, count in ipairs(opt[key]) do
    if count > most and opt._given[key] then
      cli.fail(("--%s %d: the model has %d positions"):format(key:gsub("_", "-"), count, most), 2)
    end
    list[i] = math.min(count, most)
  end
  opt[key] = list
end
local choices = { { "prompt_tokens", opt.prompt_tokens }, { "new_tokens", opt.new_tokens } }
if opt.only ~= "generate" then choices[3] = { "seq_len", opt.seq_len } end
choices[#choices + 1] = { "chunk", opt.chunk }
if opt.only ~= "generate" then choices[#choices + 1] = { "batch", opt.batch or { 8 } } end
local rows = benchmark.product(choices)
local p = profile.get { all = true, quiet = opt.quiet, note = function(name) cli.note("measuring %s", name) end }
local rates = limit.rates(model)
for _, row in ipairs(rows) do
  row.model, row.dtype, row.device, row.threads = path, model.dtype, machine.device, machine.threads
  if opt.only == "train" then row.prompt_tokens, row.new_tokens = nil, nil end
end
if opt.dry_run then
  for _, row in ipairs(rows) do
    if row.batch then
      local plans, tokens_per_s = benchmark.plan(row, model, opt, rates)
      row.predicted_peak_bytes, row.train_limit_tokens_per_s, row.slots, row.bytes_streamed = plans.peak, tokens_per_s, plans.slots,
        plans.bytes_per_step
    end
    local plans = row.prompt_tokens and benchmark.inference_plan(row, model, opt, rates)
    if plans then
      row.prefill_limit_tokens_per_s, row.decode_limit_tokens_per_s = benchmark.inference_limits(model, p, row.prompt_tokens,
        plans.bytes_per_sweep > 0 and { prefill = plans.bytes_per_sweep, token = plans.bytes_per_sweep, rate = rates.disk() } or nil)
    end
  end
  show(rows, { "batch", "chunk", "seq_len", "slots", "bytes_streamed", "predicted_peak_bytes", "train_limit_tokens_per_s", "prefill_limit_tokens_per_s",
    "decode_limit_tokens_per_s" })
  os.exit(0)
end

local bar = progress.new { total = #rows, label = "benchmark", unit = "rows", quiet = opt.quiet }
local measured = {} -- prompts and decoding do not depend on how training is done: measured once
local function infer(row)
  local key = ("%d/%d"):format(row.prompt_tokens, row.new_tokens)
  if measured[key] and measured[key].decode_slots then key = key .. "/" .. row.chunk end
  if not measured[key] then
    local figures = { prompt_tokens = row.prompt_tokens, new_tokens = row.new_tokens, chunk = row.chunk }
    benchmark.inference(figures, model, p, opt, rates)
    figures.chunk = nil
    measured[key] = figures
    if figures.decode_slots then measured[key .. "/" .. row.chunk] = figures end
  end
  for k, v in pairs(measured[key]) do row[k] = v end
end
watched(p, rows, function()
  for i, row in ipairs(rows) do
    if row.prompt_tokens then infer(row) end
    if row.batch then benchmark.training(row, model, p, opt, rates) end
    bar:update(i, row.train_tokens_per_s and ("%.0f tokens/s"):format(row.train_tokens_per_s) or row.outcome or "")
  end
  model:unload() -- the last look at the processors takes some of the budget
end)
bar:finish()
model:close()
local columns = {}
if opt.only ~= "generate" then
  columns = { "batch", "chunk", "seq_len", "micro_batch", "recompute", "slots", "bytes_streamed", "train_tokens_per_s",
    "train_deviation", "mfu", "train_limit_share", "bound", "peak_bytes", "loss", "score_efficiency", "score_speed",
    "score_memory", "score_overall", "outcome" }
end
if opt.only ~= "train" then
  for _, key in ipairs { "prompt_tokens", "prefill_tokens_per_s", "prefill_deviation", "prefill_limit_share", "new_tokens",
    "decode_tokens_per_s", "decode_deviation", "decode_limit_share" } do columns[#columns + 1] = key end
end
show(rows, columns)
local said = {}
for _, row in ipairs(rows) do
  for _, line in ipairs(row.misleading or {}) do
    if not said[line] then cli.note("misleading: %s", line) end
    said[line] = true
  end
end
local streamed = false
for _, row in ipairs(rows) do streamed = streamed or row.slots or row.decode_slots end
if #opt.chunk > 1 and not streamed then
  cli.note "chunk had no effect: the model rests whole in memory; rows that differ in it alone are alike"
end
