-- Stored images through a model, for the recipe `forward`: logits (n, classes), and what training would see.
local cli = require "onn.cli"
local core = require "onn.core.ops"
local full = require "onn.nn.full"
local lora = require "onn.nn.lora"
local optim = require "onn.optim"
local plan = require "onn.plan.images"
local store = require "onn.store"
local sweep = require "onn.sweep"
local tensors = require "onn.core.tensor"
local units = require "onn.units"

-- {x, labels, rows, tokens, supervised} of an input file with x f32 (n, c, h, w) and maybe labels (n).
local function read_batch(model, opt, input)
  local sizes = model.sizes
  local x = cli.check(input:read("x", "f32"))
  local shape = x:shape()
  if #shape ~= 4 or shape[2] ~= sizes.channels or x:numel() == 0 then
    cli.fail(("%s: x is (%s), expected (n, %d, height, width)"):format(opt.input, table.concat(shape, ", "), sizes.channels))
  end
  local batch, rows = { x = x, tokens = shape[1], supervised = 0 }, {}
  for i = 1, shape[1] do rows[i] = i - 1 end
  batch.rows = tensors.from_table(rows, "i64")
  if input:info "labels" then
    local labels = cli.check(input:read "labels")
    if #labels:shape() ~= 1 or labels:numel() ~= shape[1] then
      cli.fail(("%s: labels are (%s), expected a class for each of %d images"):format(opt.input, table.concat(labels:shape(), ", "), shape[1]))
    end
    for i, class in ipairs(labels:to("i64"):totable()) do
      if class ~= -100 and (class < 0 or class >= sizes.classes) then
        cli.fail(("%s: label %d is class %d; the model has classes 0 to %d"):format(opt.input, i, class, sizes.classes - 1))
      end
      if class ~= -100 then batch.supervised = batch.supervised + 1 end
    end
    batch.labels = labels:to "i32"
  end
  return batch, shape
end

return function(model, opt, machine)
  local input = cli.check(store.open(opt.input))
  if not input:info "x" then cli.fail(("%s: no tensor 'x'"):format(opt.input)) end
  local batch, shape = read_batch(model, opt, input)
  if opt.gradients and batch.supervised == 0 then cli.fail(("%s: --gradients needs labels"):format(opt.input)) end
  local how = { budget = machine.budget, batch = shape[1], slots = opt.slots, chunk = opt.chunk, prefetch = opt.prefetch, full = opt.full }
  local needs = plan.inference(model, how, shape[3], shape[4])
  if opt.dry_run then return cli.json { model = opt.model, images = shape[1], plan = needs } end
  if not needs.fits then
    cli.fail(("forward: this run needs at least %s, the budget is %s: give fewer images at a time"):format(units.need(needs.minimum),
      units.bytes(machine.budget)))
  end
  cli.check(model:load { ring = needs.ring })
  local adapter = opt.adapter and cli.check(lora.load(model, opt.adapter))
  local outputs = { logits = model:forward(model:carry(batch), {}).logits }
  local params = opt.gradients and (adapter and lora.parameters(adapter) or full.parameters(model))
  if opt.train_mode then
    model.net.train_mode(model)
    outputs["logits.train"] = model:forward(model:carry(batch), { training = true, repeated = true, rows = batch.rows, seed = opt.seed }).logits
  end
  if params then
    local total = sweep.gradient(model, { batch }, { scale = 1 / batch.supervised, seed = opt.seed })
    optim.fold(params)
    outputs.loss = tensors.from_table({ total / batch.supervised }, "f32"):view {}
    for _, p in ipairs(params) do outputs["grad." .. p.name] = p.gradients[1] end
    for _, s in ipairs(model.net.state(model)) do outputs["after." .. s.name] = s.value end
  end
  cli.check(store.write(opt.output, outputs, { format = "pt" }))
  if select(2, core.total(outputs.logits, false)) > 0 then cli.fail "forward: the logits are not all finite" end
end
