-- merge: folds a LoRA adapter into a new model directory
local cli = require "onn.cli"
local files = require "onn.files"
local memory = require "onn.plan.memory"
local merging = require "onn.merge"
local Model = require "onn.model"
local runtime = require "onn.runtime"
local units = require "onn.units"

local opt = cli.parse {
  name = "merge",
  summary = "Writes OUT, a model directory whose weights are W + scale * B A, added in f32 and rounded once.",
  example = "onn merge models/smollm2 adapter models/smollm2-tuned",
  arguments = { { "MODEL", "model directory" }, { "ADAPTER", "adapter directory" }, { "OUT", "model directory to write" } },
  options = {
    { "storage", type = "string", default = "stored", choices = { "stored", "f32", "bf16" }, help = "dtype of the written weights" },
    { "overwrite", help = "replace OUT" },
  },
}
runtime.apply(opt)
if opt.dry_run then
  local model = cli.check(Model.open(opt.model, { dtype = "f32" }))
  local config = cli.check(files.read_json(opt.adapter .. "/adapter_config.json"))
  local bytes = memory.weights(model)
  cli.note("would fold %s (rank %s) into %s and write %s; %s of weights pass through memory, some rows at a time", opt.adapter, tostring(config.r), opt.model,
    opt.out, units.bytes(bytes))
  if opt.json then cli.json { out = opt.out, weight_bytes = bytes } end
  os.exit(0)
end
local result = cli.check(merging.run(opt))
if cli.wants_json() then
  cli.json(result)
else
  print(("merged    %d products into %s"):format(result.merged, opt.out))
  if result.rounding then
    local text = "rounding  to 16 bits changed the merged weights by at most %.3g; relative to the adapter's own change: %.3g (r.m.s.)"
    print(text:format(result.rounding.largest, result.rounding.relative))
  end
end
