-- pretrain: a small model from nothing but a config and your data
local batch = require "onn.batch"
local cli = require "onn.cli"
local data = require "onn.data"
local fresh = require "onn.fresh"
local limit = require "onn.limit"
local Model = require "onn.model"
local plan = require "onn.plan"
local plot = require "onn.plot"
local report = require "onn.report"
local runtime = require "onn.runtime"
local Session = require "onn.session"
local signals = require "onn.core.signals"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"
local Tokenizer = require "onn.tokenizer"
local training = require "onn.training"

local opt = cli.parse {
  name = "pretrain",
  summary = "Trains a new model of CONFIG on DATA (text, JSONL, JSON) and writes a Hugging Face directory, tokenizer included.",
  example = 'onn pretrain config.json stories.jsonl --out models/stories --vocabulary 2048 --epochs 2',
  arguments = { { "CONFIG", "config.json, a directory with one, or the JSON itself" }, { "DATA", "training data" } },
  options = {
    { "out", type = "string", default = "model", metavar = "DIR", help = "model directory to write" },
    { "tokenizer", type = "string", metavar = "DIR", help = "take this tokenizer; without it one is trained on DATA" },
    { "characters", help = "the trained tokenizer's tokens are single characters" },
    { "vocabulary", type = "integer", default = 4096, min = 257, max = 2 ^ 20, help = "most tokens of a trained tokenizer" },
    { "epochs", type = "integer", default = 1, min = 1, help = "passes over the data" },
    { "steps", type = "integer", min = 1, help = "updates in all; overrides --epochs" },
    { "batch", type = "integer", default = 16, min = 1, help = "rows of --seq-len tokens per update" },
    { "micro-batch", type = "integer", min = 1, help = "rows that go through together (default: what fits the budget)" },
    { "seq-len", type = "integer", default = 256, min = 2, help = "tokens in a row" },
    { "lr", type = "number", default = 1e-3, min = 0, help = "learning rate" },
    { "schedule", type = "string", default = "cosine", choices = { "constant", "cosine", "linear" }, help = "how the rate falls" },
    { "warmup", type = "number", default = 0.03, min = 0,
      help = "share of the updates (below 1), or their number, in which the rate rises" },
    { "clip", type = "number", default = 1, min = 0, help = "largest norm of the gradient; 0 = none" },
    { "weight-decay", type = "number", default = 0.1, min = 0, help = "decoupled weight decay" },
    { "optimizer", type = "string", default = "adamw", choices = { "adamw", "sgd" }, help = "AdamW, or SGD with --momentum" },
    { "momentum", type = "number", default = 0, min = 0, max = 0.9999, help = "SGD's momentum" },
    { "image-size", type = "integer", min = 1, max = 2 ^ 14, help = "side to which pictures are scaled and cut" },
    { "mean", type = "list", of = "number", help = "mean of each channel, of values in 0 to 1" },
    { "std", type = "list", of = "number", help = "deviation of each channel" },
    { "betas", type = "list", of = "number", default = { 0.9, 0.95 }, help = "AdamW's decay rates" },
    { "eval", type = "string", metavar = "DATA", help = "held-out data: its loss is reported before and after" },
    { "overwrite", help = "replace --out" },
    { "log", type = "string", metavar = "FILE", help = "one JSON object per update" },
  },
}
opt.full, opt.pack, opt.loss, opt.recompute, opt.scratch = true, "stream", "all", "auto", false
local machine = runtime.apply(opt)
opt.budget = machine.budget
if system.exists(opt.out) and not opt.overwrite then cli.fail(opt.out .. " exists; --overwrite replaces it") end

-- The directory is made beside --out and takes its name only when it is whole.
local config, kind = fresh.config(opt.config, opt.vocabulary)
cli.check(config, kind)
local images = kind == "images"
if images then data = require "onn.data.images" end
local part = cli.check(fresh.directory(opt.out))
if images then
  cli.check(require "onn.image_config"(config, opt.data, opt))
else
  if not opt.tokenizer then cli.note("tokenizer learning at most %d tokens from %s", opt.vocabulary, opt.data) end
  cli.check(fresh.tokenizer(part, config, opt))
end
cli.check(fresh.weights(part, config, opt.seed))
local model = cli.check(Model.open(part, { dtype = opt.dtype }))
if #model.missing > 0 then cli.fail(model:why_not()) end
local unfit = training.check_data(model, opt)
if unfit then cli.fail("pretrain: " .. unfit, 2) end
opt.seq_len = not images and math.min(opt.seq_len, model.sizes.positions) or nil

local rates = limit.rates(model)
opt.rates = rates
local set = images and cli.check(data.open(opt.data, model, opt))
local plans = images and training.plan(model, opt, set, rates) or plan.training(model, opt)
report.plan(model, plans, machine, rates)
if opt.dry_run then
  if cli.wants_json() then cli.json(plans) end
  os.exit(0)
end
if not plans.fits then cli.fail("pretrain: " .. training.too_large(plans, machine.budget)) end

local reader = images and model or cli.check(Tokenizer.open(part))
set = set or cli.check(data.open(opt.data, reader, opt))
local held_out = opt.eval and cli.check(data.open(opt.eval, reader, opt))
cli.check(model:load())
opt.carried = training.carried(model, opt)
local order = { batch = opt.batch, micro_batch = plans.micro_batch, seq_len = opt.seq_len, pack = opt.pack, shuffle = true, seed = opt.seed,
  carried = opt.carried, epoch = 0, cursor = 0 }
local per_epoch = data.updates(set, order)
opt.total_steps, opt.sweep = opt.steps or per_epoch * opt.epochs, plans.sweep
local session = cli.check(Session.new(model, opt))

session:watch()
local log = report.training_log(opt, { total = opt.total_steps, plan = plans, rates = rates, first = 0 })
local function evaluate()
  if not held_out then return nil end
  local loss, _, accuracy = data.loss(model, held_out, order)
  return loss, accuracy
end
log.before = evaluate()
signals.handle(true)
local stopped

while session.step < opt.total_steps and not stopped do
  for update, cursor in data.batches(set, order) do
    local began = system.now()
    local result = session:update(update, order.epoch)
    for _, b in ipairs(update) do batch.free(b) end
    result.epoch, result.seconds = order.epoch + cursor / per_epoch, system.now() - began
    log:step(result)
    if session.skipped_in_row >= Session.patience then
      cli.fail(("training stopped: %d updates in a row had a loss or gradient that is not finite"):format(Session.patience))
    end
    stopped = signals.pending()
    if stopped or session.step >= opt.total_steps then break end
  end
  order.epoch, order.cursor = order.epoch + 1, 0
end

cli.check(session:verify())
cli.check(session:save(part))
cli.check(fresh.finish(part, opt.out))
if stopped then
  cli.note("interrupted: the model of step %d is in %s", session.step, opt.out)
  os.exit(128 + stopped)
end
log.after, log.accuracy = evaluate()
log:summary(session, opt.out, tensors.memory().peak, plot)
