-- embed: one vector for each text
local cli = require "onn.cli"
local embedding = require "onn.embedding"
local formats = require "onn.data.formats"
local json = require "onn.core.json"
local lora = require "onn.nn.lora"
local Model = require "onn.model"
local plan = require "onn.plan"
local runtime = require "onn.runtime"
local store = require "onn.store"
local streaming = require "onn.streaming_options"
local Tokenizer = require "onn.tokenizer"
local units = require "onn.units"

local opt = cli.parse {
  name = "embed",
  summary = "Writes a vector for each text of INPUT: a line of a text file, or `text` of a JSONL row. The model's own pooling, if its files say.",
  example = "onn embed models/minilm sentences.txt --output vectors.safetensors",
  arguments = { { "MODEL", "model directory" }, { "INPUT", "text file with a text a line (empty ones are left out), or JSONL rows with `text`" } },
  options = streaming.add {
    { "output", type = "string", metavar = "FILE",
      help = "a .safetensors file for `embeddings` (texts, width); without it a JSON row a text goes to standard output" },
    { "pooling", type = "string", choices = { "mean", "cls", "max", "last" }, help = "how tokens become one vector" },
    { "normalize", help = "scale vectors to length 1" },
    { "batch", type = "integer", default = 4096, min = 1, help = "tokens that go through together" },
    { "adapter", type = "string", metavar = "DIR", help = "LoRA adapter to put on the model" },
  },
}
local machine = runtime.apply(opt)

-- The texts of a file, in order.
local function read_texts(path)
  local kind = cli.check(formats.kind(path))
  local texts = {}
  if kind == "text" then
    for line in (cli.check(formats.read_all(path)) .. "\n"):gmatch "(.-)\r?\n" do
      if line:find "%S" then texts[#texts + 1] = line end
    end
  elseif kind == "safetensors" then
    cli.fail(path .. ": texts are expected")
  else
    cli.check(formats.rows(path, kind, function(row)
      local text = type(row) == "table" and row.text or row
      if type(text) ~= "string" then return nil, "there is no 'text'" end
      texts[#texts + 1] = text
      return true
    end))
  end
  if #texts == 0 then cli.fail(path .. ": there is no text") end
  return texts
end

local texts = read_texts(opt.input)
local model = cli.check(Model.open(opt.model, { dtype = opt.dtype }))
if #model.missing > 0 then cli.fail(model:why_not()) end
local how = cli.check(embedding.settings(model.directory))
how.pooling, how.normalize, how.batch = opt.pooling or how.pooling, opt.normalize or how.normalize, opt.batch
how.tokenizer = cli.check(Tokenizer.open(model.directory))
local needs = plan.inference(model, { tokens = opt.batch, seq_len = model.sizes.positions, body = true, budget = machine.budget, chunk = opt.chunk,
  slots = opt.slots, prefetch = opt.prefetch })
if opt.dry_run then
  cli.json { model = opt.model, texts = #texts, pooling = how.pooling, normalize = how.normalize, plan = needs }
  os.exit(0)
end
if not needs.fits then
  cli.fail(("embed: at least %s are needed, the budget is %s: try a smaller --batch"):format(units.need(needs.minimum),
    units.bytes(machine.budget)))
end
cli.check(model:load_by(needs.ring))
if opt.adapter then cli.check(lora.load(model, opt.adapter)) end
local vectors = embedding.embed(model, texts, how)
if opt.output then
  cli.check(store.write(opt.output, { embeddings = vectors }, { format = "pt" }))
else
  local rows = vectors:totable()
  for i, text in ipairs(texts) do io.write(json.encode { text = text, embedding = json.array(rows[i]) }, "\n") end
end
