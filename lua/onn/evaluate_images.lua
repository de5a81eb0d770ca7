-- Loss and accuracy of a model on held-out images, for the recipe `evaluate`.
local cli = require "onn.cli"
local images = require "onn.data.images"
local lora = require "onn.nn.lora"
local plan = require "onn.plan.images"
local units = require "onn.units"

return function(model, opt, machine)
  local set = cli.check(images.open(opt.data, model, opt))
  for _, note in ipairs(images.notes(set)) do cli.note("data      %s", note) end
  local batch = math.min(opt.batch, set.samples)
  local needs = plan.inference(model, { budget = machine.budget, batch = batch, slots = opt.slots, chunk = opt.chunk, prefetch = opt.prefetch },
    set.height, set.width, set)
  if opt.dry_run then return cli.json { model = opt.model, samples = set.samples, plan = needs } end
  if not needs.fits then
    cli.fail(("this run needs at least %s, the budget is %s: try a smaller --batch, or --memory"):format(units.need(needs.minimum),
      units.bytes(machine.budget)))
  end
  cli.check(model:load { ring = needs.ring })
  if opt.adapter then cli.check(lora.load(model, opt.adapter)) end
  local loss, samples, accuracy = images.loss(model, set, { batch = batch })
  if not loss then os.exit(130) end
  if cli.wants_json() then return cli.json { loss = loss, accuracy = accuracy, samples = samples } end
  print(("loss           %.4f over %d images"):format(loss, samples))
  print(("accuracy       %.2f %%"):format(100 * accuracy))
end
