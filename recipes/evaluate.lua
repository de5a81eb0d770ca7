-- evaluate: held-out loss, perplexity and bits per byte of a model on your data
local classifier = require "onn.classifier"
local cli = require "onn.cli"
local data = require "onn.data"
local limit = require "onn.limit"
local lora = require "onn.nn.lora"
local model_options = require "onn.model_options"
local plan = require "onn.plan"
local runtime = require "onn.runtime"
local settings = require "onn.settings"
local streaming = require "onn.streaming_options"
local Tokenizer = require "onn.tokenizer"
local units = require "onn.units"

local opt = cli.parse {
  name = "evaluate",
  summary = "Mean loss per supervised token of MODEL on DATA, with its perplexity and bits per byte of text; of images loss and accuracy.",
  example = "onn evaluate models/smollm2 held-out.jsonl --adapter adapter",
  arguments = { { "MODEL", "model directory" }, { "DATA", "held-out data" } },
  options = model_options.add(streaming.add {
    { "adapter", type = "string", metavar = "DIR", help = "LoRA adapter to put on the model" },
    { "seq-len", type = "integer", default = 512, min = 2, help = "longest sequence in tokens" },
    { "batch", type = "integer", default = 8, min = 1, help = "sequences that go through together" },
    { "loss", type = "string", choices = { "all", "completion" },
      help = "which tokens count (default: completion for pairs, all for text)" },
    { "image-size", type = "integer", min = 1, max = 2 ^ 14, help = "side to which pictures are scaled and cut" },
    { "mean", type = "list", of = "number", help = "mean of each channel, of values in 0 to 1" },
    { "std", type = "list", of = "number", help = "deviation of each channel" },
    { "prompt-key", type = "string", help = "key of the prompt in DATA" },
    { "completion-key", type = "string", help = "key of the completion in DATA" },
    { "template", type = "string", help = "file or text with {prompt} and {completion}" },
  }),
}
settings.apply(opt, opt.model, { batch = true, chunk = true, threads = true, dtype = true }) -- the length says what the loss is of
local machine = runtime.apply(opt)

local model = cli.check(classifier.open(opt.model, opt.data, model_options.of(opt)))
if #model.missing > 0 then cli.fail(model:why_not()) end
if model.net.data == "images" then
  require("onn.evaluate_images")(model, opt, machine)
  os.exit(0)
end
if not opt.adapter and model:untrained() then cli.fail(model:untrained()) end
opt.seq_len = math.min(opt.seq_len, model.sizes.positions)
local tokenizer = not model.net.open_data and not opt.data:find "%.safetensors$" and cli.check(Tokenizer.open(model.directory)) or nil
opt.vocab_size, opt.classes, opt.own = model.sizes.vocabulary, classifier.classes(model), model.sizes.top ~= nil
local set = cli.check(data.open(opt.data, tokenizer, opt, model))
for _, note in ipairs(data.notes(set)) do cli.note("data      %s", note) end
opt.budget = machine.budget
local needs = plan.evaluation(model, set, opt, limit.rates(model))
if opt.dry_run then
  cli.json { model = opt.model, samples = data.size(set), tokens = set.tokens, plan = needs }
  os.exit(0)
end
if not needs.fits then
  cli.fail(("this run needs at least %s, the budget is %s: try a smaller --seq-len, or --memory"):format(units.need(needs.minimum),
    units.bytes(machine.budget)))
end
cli.check(model:load { ring = needs.ring })
if opt.adapter then cli.check(lora.load(model, opt.adapter)) end
if opt.classes then
  local found = classifier.evaluate(model, set, { micro_batch = needs.micro_batch, seq_len = opt.seq_len })
  if cli.wants_json() then
    cli.json(found)
  else
    print(("accuracy       %.4f over %d samples"):format(found.accuracy, found.samples))
    print(("loss           %.4f"):format(found.loss))
  end
  os.exit(0)
end
local loss, tokens = data.loss(model, set, { batch = opt.batch, micro_batch = needs.micro_batch, together = needs.together,
  seq_len = opt.seq_len })
local result = { loss = loss, perplexity = not model.net.open_data and math.exp(loss) or nil, tokens = tokens,
  bits_per_byte = set.supervised_bytes and loss * tokens / math.log(2) / set.supervised_bytes or nil }
if cli.wants_json() then
  cli.json(result)
else
  print(("loss           %.4f over %d %s"):format(loss, tokens, model.net.open_data and "rows" or "tokens"))
  if result.perplexity then print(("perplexity     %.3f"):format(result.perplexity)) end
  if result.bits_per_byte then print(("bits per byte  %.4f"):format(result.bits_per_byte)) end
end
