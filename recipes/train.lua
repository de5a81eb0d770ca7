-- train: LoRA (or full) fine-tuning of a model on your data
local batch = require "onn.batch"
local checkpoint = require "onn.checkpoint"
local classifier = require "onn.classifier"
local cli = require "onn.cli"
local data = require "onn.data"
local layers = require "onn.layers"
local limit = require "onn.limit"
local lora = require "onn.nn.lora"
local model_options = require "onn.model_options"
local plot = require "onn.plot"
local report = require "onn.report"
local runtime = require "onn.runtime"
local Session = require "onn.session"
local settings = require "onn.settings"
local signals = require "onn.core.signals"
local sweep = require "onn.sweep"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"
local Tokenizer = require "onn.tokenizer"
local training = require "onn.training"

local opt = cli.parse {
  name = "train",
  summary = "Fine-tunes MODEL on DATA (JSONL, JSON, text, or input_ids in a safetensors file; images: a folder for each class, IDX, .npy, or x and "
    .. "y in a safetensors file) and writes an adapter in PEFT's format.",
  example = "onn train models/smollm2 questions.jsonl --out adapter --epochs 1",
  arguments = { { "MODEL", "model directory" }, { "DATA", "training data" } },
  options = model_options.add(require "onn.training_options"),
}
local wrong = training.check(opt)
if wrong then cli.fail("train: " .. wrong, 2) end
settings.apply(opt, opt.model)
local machine = runtime.apply(opt)

local model = cli.check(classifier.open(opt.model, opt.data, model_options.of(opt)))
if #model.missing > 0 then cli.fail(model:why_not()) end
local unfit = training.check_data(model, opt)
if unfit then cli.fail("train: " .. unfit, 2) end
local images = model.net.data == "images"
if images then data = require "onn.data.images" end
if model.unwritten and not opt.full then
  cli.note("%s has no weights beside it: new ones are trained (--full)", opt.model)
  opt.full = true
end
opt.seq_len = not images and math.min(opt.seq_len, model.sizes.positions) or nil
local chosen, unknown = layers.parse(opt.layers, model, opt)
if chosen == false then cli.fail(unknown, 2) end
opt.layers, opt.budget = chosen, machine.budget
if opt.adapter then
  local rank, blocks = lora.extent(opt.adapter, model)
  opt.rank, opt.layers = cli.check(rank, blocks), blocks
end
local resume, replaced
if not opt.dry_run then resume, replaced = checkpoint.choose(opt) end
local tokenizer = not images and not model.net.open_data and not opt.data:find "%.safetensors$" and cli.check(Tokenizer.open(model.directory))
  or nil
opt.vocab_size, opt.classes, opt.own = model.sizes.vocabulary, classifier.classes(model), model.sizes.top ~= nil
local set = cli.check(data.open(opt.data, images and model or tokenizer, opt, model))
for _, note in ipairs(data.notes(set, { pack = opt.pack, seq_len = opt.seq_len })) do cli.note("data      %s", note) end
local held_out = opt.eval and cli.check(data.open(opt.eval, images and model or tokenizer, opt, model))

local rates = limit.rates(model, opt.scratch or opt.out)
local plans = training.plan(model, opt, set, rates, held_out)
report.plan(model, plans, machine, rates)
if opt.dry_run then
  if cli.wants_json() then cli.json(plans) end
  os.exit(0)
end
if not plans.fits then cli.fail("train: " .. training.too_large(plans, machine.budget)) end
cli.check(model:load { ring = plans.ring, progress = report.loading(#model.stages) })

opt.carried = training.carried(model, opt)
local order = { batch = opt.batch, micro_batch = plans.micro_batch, seq_len = opt.seq_len, pack = opt.pack, shuffle = opt.shuffle ~= false,
  carried = opt.carried, seed = opt.seed, epoch = 0, cursor = 0 }
local per_epoch = data.updates(set, order)
for _, note in ipairs(images and {} or data.notes(set, order)) do cli.note("data      %s", note) end
local total = opt.steps or per_epoch * opt.epochs
opt.total_steps, opt.sweep, opt.carries = total, plans.sweep, training.carries(opt, plans)
local session = cli.check(Session.new(model, opt))
local run = checkpoint.run(opt, { data = data.hash(set), total = total })
if resume then
  local same, changed = checkpoint.compare(resume, cli.check(checkpoint.state(resume)).run, run)
  if not same then cli.fail(changed) end
  local state = cli.check(session:resume(resume))
  for _, note in ipairs(changed) do cli.note("--resume: %s", note) end
  order.epoch, order.cursor = state.epoch, state.cursor
  cli.note("resumed from %s, step %d of %d", resume, session.step, total)
end

local log = report.training_log(opt, { total = total, plan = plans, rates = rates, first = session.step })
local function evaluate()
  local loss, _, accuracy
  if held_out then loss, _, accuracy = data.loss(model, held_out, training.evaluation(order, plans)) end
  session:passed() -- its reads are no update's
  return loss, accuracy
end
training.begin(model, opt, plans, session)
local saved = resume == checkpoint.path(opt.out, session.step) and session.step
local function save()
  if saved == session.step then return end
  cli.check(session:checkpoint(opt.out, { epoch = order.epoch, cursor = order.cursor, run = run }, opt.keep))
  saved = session.step
end
session.replaces = replaced
session:watch()
log.before = evaluate()
signals.handle(true)

-- Returns the signal that ended it, or nil.
local function train()
  while session.step < total do
    local began = system.now()
    for update, cursor in session:ahead(data.batches(set, order), plans.ahead_tokens, plans.ahead_ram) do
      local result = session:update(update, order.epoch)
      for _, b in ipairs(update) do batch.free(b) end
      order.cursor = cursor
      result.epoch, result.seconds = order.epoch + cursor / per_epoch, system.now() - began
      log:step(result)
      if session.skipped_in_row >= Session.patience then
        cli.fail(("training stopped: %d updates in a row had a loss or gradient that is not finite"):format(Session.patience))
      end
      if opt.eval_every and session.step % opt.eval_every == 0 then log:evaluated(evaluate()) end
      if signals.pending() then return signals.pending() end
      if opt.save_every and session.step % opt.save_every == 0 and session.step < total then save() end
      if session.step >= total then return end
      began = system.now()
    end
    order.epoch, order.cursor = order.epoch + 1, 0
  end
end
local ok, stopped = pcall(train)
if not ok and stopped == sweep.interrupted then ok, stopped = true, signals.pending() end
if not ok or stopped then training.leave(session) end
if not ok then error(stopped, 0) end
if stopped and session.step == 0 then
  cli.note "interrupted before the first update was finished: there is nothing to save"
  os.exit(128 + stopped)
elseif stopped then
  save()
  cli.note("interrupted: step %d is saved in %s; go on with --resume", session.step, checkpoint.path(opt.out, session.step))
  os.exit(128 + stopped)
end

training.leave(session, true)
cli.check(checkpoint.result(opt.out, function(directory) return session:save(directory) end))
checkpoint.prune(opt.out, opt.keep, session.step, session.replaces)
if opt.full then training.clear_adapter(opt.out) end
cli.check(session:verify())
log.after, log.accuracy = evaluate()
log:summary(session, opt.out, tensors.memory().peak, plot)
