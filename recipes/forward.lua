-- forward: run stored tensors through a model and store what comes out
local batch = require "onn.batch"
local cli = require "onn.cli"
local core = require "onn.core.ops"
local corpora = require "onn.core.corpus"
local full = require "onn.nn.full"
local lora = require "onn.nn.lora"
local Model = require "onn.model"
local plan = require "onn.plan"
local runtime = require "onn.runtime"
local store = require "onn.store"
local streaming = require "onn.streaming_options"
local sweep = require "onn.sweep"
local tensors = require "onn.core.tensor"
local units = require "onn.units"

local opt = cli.parse {
  name = "forward",
  summary = "Runs the `input_ids` (rows, length) of a safetensors file through MODEL and writes `logits` (rows, length, vocabulary).",
  example = "onn forward models/tiny --input ids.safetensors --output out.safetensors",
  arguments = { { "MODEL", "model directory" } },
  options = streaming.add {
    { "input", type = "string", metavar = "FILE", help = "safetensors file with input_ids, and labels if wanted" },
    { "output", type = "string", metavar = "FILE", help = "safetensors file to write" },
    { "hidden", help = "write the head's input too, as `hidden`" },
    { "gradients", help = "write `loss` and the gradient of every trained tensor, as grad.NAME" },
    { "adapter", type = "string", metavar = "DIR", help = "LoRA adapter to put on the model" },
    { "full", help = "the model's own weights are the trained tensors" },
  },
}
if not opt.input or not opt.output then cli.fail("forward: --input FILE and --output FILE are needed", 2) end
if opt.gradients and not (opt.adapter or opt.full) then
  cli.fail("forward: --gradients wants something trained: --adapter DIR or --full", 2)
end
local machine = runtime.apply(opt)

local model = cli.check(Model.open(opt.model, { dtype = opt.dtype }))
if #model.missing > 0 then cli.fail(model:why_not()) end
local input = cli.check(store.open(opt.input))
local given = {}
for _, name in ipairs { "input_ids", "x", "labels", "y", "token_type_ids" } do
  if input:info(name) then given[name] = cli.check(input:read(name)) end
end
local ids, labels = given.input_ids or not model.net.open_data and given.x or nil, given.labels
if not ids and not (given.x and model.net.open_data) then
  cli.fail(("%s: no tensor '%s'"):format(opt.input, model.net.open_data and "x" or "input_ids"))
end
local shape = (ids or given.x):shape()
if ids then
  local checked = corpora.new()
  local fits, misfit = pcall(checked.add_tensor, checked, ids, labels and #labels:shape() == 2 and labels or nil)
  if not fits then cli.fail(("%s: %s"):format(opt.input, misfit)) end
  local id, row, place = checked:beyond(model.sizes.vocabulary)
  if id then
    cli.fail(("%s: token %d of row %d is %d; the model has ids 0 to %d"):format(opt.input, place, row, id, model.sizes.vocabulary - 1))
  end
  if #shape ~= 2 then cli.fail(("%s: input_ids should be (rows, length)"):format(opt.input)) end
else
  shape = { shape[1], 1 }
end
local outputs_each = model.sizes.outputs or model.sizes.vocabulary or model.sizes.width

-- What is written stays in memory until the end: it is no part of what the plans may use, but for the logits' first making.
local tokens, width = shape[1] * shape[2], model.sizes.width
local logits, hidden = tokens * outputs_each * 4, opt.hidden and tokens * width * 8 or 0
local how = { chunk = opt.chunk, slots = opt.slots, prefetch = opt.prefetch, seq_len = shape[2] }
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
local b, misfit
if model.net.batch then
  b, misfit = model.net.batch(model.sizes, given)
  if not b then cli.fail(("%s: %s"):format(opt.input, misfit)) end
else
  b = batch.from_ids(ids, labels)
end

local carry = model:forward(model:carry(b), { training = false })
local per_token = ids and carry.logits:size(1) == tokens and tokens ~= shape[1]
local function shaped(t) return per_token and t:view { shape[1], shape[2], t:size(2) } or t end
outputs.logits = shaped(carry.logits)
if opt.hidden then
  if not carry.last_hidden then cli.fail("forward: --hidden: this model has no single input of a head") end
  outputs.hidden = shaped(carry.last_hidden:to "f32")
end

if opt.gradients then
  cli.check(model:load_by(back.ring))
  local params = adapter and lora.parameters(adapter) or full.parameters(model)
  local total = sweep.gradient(model, { b }, { scale = 1 / b.supervised, seed = opt.seed, keep_from = back.sweep.keep_from,
    head_together = back.sweep.head_together })
  require("onn.optim").fold(params)
  outputs.loss = tensors.from_table(total / b.supervised, "f32")
  for _, p in ipairs(params) do outputs["grad." .. p.name] = p.gradients[1] end
end
cli.check(store.write(opt.output, outputs, { format = "pt" }))
local finite = select(2, core.total(outputs.logits:contiguous():view { -1 }, false)) == 0
if not finite then cli.fail("forward: the logits are not all finite") end
