-- forward: run stored tensors through a model and store what comes out
local batch = require "onn.batch"
local cli = require "onn.cli"
local core = require "onn.core.ops"
local corpora = require "onn.core.corpus"
local full = require "onn.nn.full"
local lora = require "onn.nn.lora"
local Model = require "onn.model"
local model_options = require "onn.model_options"
local plan = require "onn.plan"
local runtime = require "onn.runtime"
local store = require "onn.store"
local streaming = require "onn.streaming_options"
local sweep = require "onn.sweep"
local tensors = require "onn.core.tensor"
local units = require "onn.units"

local opt = cli.parse {
  name = "forward",
  summary = "Runs the `input_ids` (rows, length) of a safetensors file through MODEL and writes `logits` (rows, length, vocabulary), or"
    .. " (rows, classes); of images `x` (n, channels, height, width): `logits` (n, classes).",
  example = "onn forward models/tiny --input ids.safetensors --output out.safetensors",
  arguments = { { "MODEL", "model directory" } },
  options = model_options.add(streaming.add {
    { "input", type = "string", metavar = "FILE", help = "safetensors file with input_ids (images: x), and labels if wanted" },
    { "output", type = "string", metavar = "FILE", help = "safetensors file to write" },
    { "hidden", help = "write the head's input too, as `hidden`" },
    { "gradients", help = "write `loss` and the gradient of every trained tensor, as grad.NAME" },
    { "adapter", type = "string", metavar = "DIR", help = "LoRA adapter to put on the model" },
    { "full", help = "the model's own weights are the trained tensors" },
    { "train-mode", help = "images: write `logits.train` too, of batch norms that take the batch's statistics; gradients are then of this mode, "
      .. "and the running statistics behind it are after.NAME" },
  }),
}
if not opt.input or not opt.output then cli.fail("forward: --input FILE and --output FILE are needed", 2) end
if opt.gradients and not (opt.adapter or opt.full) then
  cli.fail("forward: --gradients wants something trained: --adapter DIR or --full", 2)
end
local machine = runtime.apply(opt)

local model = cli.check(Model.open(opt.model, model_options.of(opt)))
if #model.missing > 0 then cli.fail(model:why_not()) end
if not opt.adapter and model:untrained() then cli.fail(model:untrained()) end
if model.net.data == "images" then
  require "onn.forward_images"(model, opt, machine)
  os.exit(0)
elseif opt.train_mode then
  cli.fail("--train-mode: this model has no batch norms", 2)
end
local input = cli.check(store.open(opt.input))
local given, numeric = {}, model.net.open_data ~= nil
for _, name in ipairs { "input_ids", "x", "y", "token_type_ids", "decoder_input_ids" } do
  if input:info(name) then given[name] = cli.check(input:read(name)) end
end
local ids = not numeric and (given.input_ids or given.x) or nil
if not (ids or numeric and given.x) then cli.fail(("%s: no tensor '%s'"):format(opt.input, numeric and "x" or "input_ids")) end
local labels = input:info "labels" and cli.check(input:read "labels")
if ids then
  local checked = corpora.new()
  local fits, misfit = pcall(checked.add_tensor, checked, ids, not model.net.batch and labels or nil) -- others look at labels themselves
  if not fits then cli.fail(("%s: %s"):format(opt.input, misfit)) end
  local id, row, place = checked:beyond(model.sizes.vocabulary)
  if id then
    cli.fail(("%s: token %d of row %d is %d; the model has ids 0 to %d"):format(opt.input, place, row, id, model.sizes.vocabulary - 1))
  end
end
local shape = (ids or given.x):shape()
if ids and #shape ~= 2 then cli.fail(("%s: input_ids should be (rows, length)"):format(opt.input)) end
if numeric then shape = { shape[1], 1 } end
local beside = given.decoder_input_ids and given.decoder_input_ids:shape() or shape
local longest = math.max(shape[2], beside[2] or 0)
local outputs_each = model.sizes.outputs or model.sizes.vocabulary or model.sizes.width

-- What is written stays in memory until the end: it is no part of what the plans may use, but for the logits' first making.
local tokens, width = shape[1] * longest, model.sizes.width
local logits, hidden = tokens * outputs_each * 4, opt.hidden and tokens * width * 8 or 0
local how = { chunk = opt.chunk, slots = opt.slots, prefetch = opt.prefetch, seq_len = longest }
local function planned(kind, more)
  for key, value in pairs(more) do how[key] = value end
  return plan[kind](model, how)
end
local needs = planned("inference", { tokens = tokens, rows = tokens, budget = machine.budget - hidden,
  adapter = opt.adapter and lora.bytes(opt.adapter, model) })
local rank, blocks
if opt.adapter then
  rank, blocks = lora.extent(opt.adapter, model)
  cli.check(rank, blocks)
end
local back = opt.gradients and planned("training", { batch = shape[1], micro_batch = shape[1], rank = rank, layers = blocks, full = opt.full,
  scratch = false, budget = machine.budget - hidden - logits })
if opt.dry_run then
  cli.json { model = opt.model, rows = shape[1], length = shape[2], dtype = model.dtype, plan = needs, gradients = back or nil }
  os.exit(0)
end
local least = math.max(needs.minimum + hidden, back and back.minimum + hidden + logits or 0)
if not needs.fits or back and not back.fits then
  cli.fail(("forward: logits of (%d, %d, %d) take %s, and the run with them at least %s; the budget is %s: give fewer rows at a time"):format(
    shape[1], shape[2], outputs_each, units.bytes(logits), units.bytes(least), units.bytes(machine.budget)))
end
cli.check(model:load_by(needs.ring))
local adapter = opt.adapter and cli.check(lora.load(model, opt.adapter))
local outputs = {}
local function batch_of(with_labels)
  if not model.net.batch then return batch.from_ids(ids, labels) end
  given.labels = with_labels and labels or nil
  local b, wrong = model.net.batch(model.sizes, given)
  return b or cli.fail(("%s: %s"):format(opt.input, wrong))
end
local b = batch_of(true)

local carry = model:forward(model:carry(batch_of(false)), { training = false, keep_hidden = opt.hidden })
local wide = model.sizes.outputs or model.sizes.vocabulary
if carry.logits then -- a body alone has none
  local each = carry.logits:size(1) / shape[1] -- one for a row's class, else the tokens of a row
  local classes = numeric or model.sizes.top and model.sizes.top.kind == "classes"
  outputs.logits = classes and carry.logits or carry.logits:view { shape[1], each, wide }
end
if opt.hidden then
  if not carry.last_hidden then cli.fail "forward: --hidden: this model's head has no input of each token" end
  outputs.hidden = carry.last_hidden:to("f32"):view { shape[1], carry.last_hidden:size(1) / shape[1], model.sizes.width }
end

if opt.gradients then
  if b.supervised == 0 then cli.fail(opt.input .. ": no token has a label: there is no gradient") end
  cli.check(model:load_by(back.ring))
  local params = adapter and lora.parameters(adapter) or full.parameters(model)
  local total = sweep.gradient(model, { b }, { scale = 1 / b.supervised, seed = opt.seed, keep_from = back.sweep.keep_from,
    head_together = back.sweep.head_together })
  require("onn.optim").fold(params)
  outputs.loss = tensors.from_table(total / b.supervised, "f32")
  for _, p in ipairs(params) do outputs["grad." .. p.name] = adapter and p.gradients[1] or full.stored(p, p.gradients[1]) end
end
cli.check(store.write(opt.output, outputs, { format = "pt" }))
local finite = not outputs.logits or select(2, core.total(outputs.logits:contiguous():view { -1 }, false)) == 0
if not finite then cli.fail("forward: the logits are not all finite") end
