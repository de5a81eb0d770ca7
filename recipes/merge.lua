-- merge: folds a LoRA adapter into a new model directory
local cli = require "onn.cli"
local merging = require "onn.merge"
local runtime = require "onn.runtime"

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
local result = cli.check(merging.run(opt))
if cli.wants_json() then
  cli.json(result)
else
  print(("merged    %d products into %s"):format(result.merged, opt.out))
  if result.rounding then
    print(("rounding  to 16 bits changed the merged weights by at most %.3g; relative to the adapter's own change: %.3g (root mean square)"):format(
      result.rounding.largest, result.rounding.relative))
  end
end
