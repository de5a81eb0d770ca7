-- generate: text from a model, as it comes
local cli = require "onn.cli"
local completion = require "onn.completion"
local formats = require "onn.data.formats"
local json = require "onn.core.json"
local limit = require "onn.limit"
local lora = require "onn.nn.lora"
local Model = require "onn.model"
local model_options = require "onn.model_options"
local plan = require "onn.plan"
local runtime = require "onn.runtime"
local settings = require "onn.settings"
local signals = require "onn.core.signals"
local streaming = require "onn.streaming_options"
local terminal = require "onn.core.terminal"
local Tokenizer = require "onn.tokenizer"
local units = require "onn.units"

local opt = cli.parse {
  name = "generate",
  summary = "Continues a prompt, or answers with --chat. Only the text goes to standard output.",
  example = 'onn generate models/smollm2 --chat --prompt "What is the capital of France?"',
  arguments = { { "MODEL", "model directory" } },
  options = model_options.add(streaming.add {
    { "prompt", type = "string", help = "the text to continue; standard input without it" },
    { "prompts", type = "string", metavar = "FILE",
      help = 'JSON lines of {"prompt"}, decoded together; one {"prompt","text"} a line comes out' },
    { "chat", help = "apply the chat template; a conversation when on a terminal without --prompt" },
    { "system", type = "string", help = "system message of --chat" },
    { "adapter", type = "string", metavar = "DIR", help = "LoRA adapter to put on the model" },
    { "max-tokens", type = "integer", default = 256, min = 1, help = "most new tokens" },
    { "temperature", type = "number", default = 0.7, min = 0, help = "0 = always the likeliest token" },
    { "top-k", type = "integer", default = 0, min = 0, help = "choose among the k likeliest; 0 = all" },
    { "top-p", type = "share", default = 1, help = "choose among the likeliest that make up this share" },
    { "min-p", type = "share", default = 0, help = "leave out tokens below this share of the likeliest" },
    { "repeat-penalty", type = "number", default = 1, min = 0.01, help = "divides the logits of tokens already there" },
    { "stop", type = "string", repeats = true, help = "end at this text (repeatable)" },
    { "stats", help = "print speeds on standard error" },
  }),
}
settings.apply(opt, opt.model)
local machine = runtime.apply(opt)

local model = cli.check(Model.open(opt.model, model_options.of(opt)))
if #model.missing > 0 then cli.fail(model:why_not()) end
if model:unfit "tokens" then cli.fail(model:unfit "tokens") end
if model.net.continues == false then
  cli.fail(("%s: a model of the family %s does not continue a text"):format(opt.model, model.family))
end
local tokenizer = cli.check(Tokenizer.open(model.directory))
if opt.prompt and opt.prompts then cli.fail("generate: --prompt and --prompts cannot go together", 2) end
if opt.system and not opt.chat then cli.fail("generate: --system belongs to --chat", 2) end

local function messages_of(text)
  local user = { role = "user", content = text }
  return opt.system and { { role = "system", content = opt.system }, user } or { user }
end

-- The prompts of a file of JSON lines.
local function read_prompts(path)
  local list = {}
  cli.check(formats.rows(path, "lines", function(row)
    if type(row) ~= "table" or type(row.prompt) ~= "string" then return nil, 'expected {"prompt": "..."}' end
    list[#list + 1] = row.prompt
    return true
  end))
  if #list == 0 then cli.fail(path .. ": there are no prompts") end
  return list
end
local many = opt.prompts and read_prompts(opt.prompts)

local function encode(prompt) return cli.check(completion.encode(tokenizer, prompt, model.sizes.vocabulary)) end

local prompts = {}
if many then
  for s, prompt in ipairs(many) do prompts[s] = encode(opt.chat and messages_of(prompt) or prompt) end
elseif opt.prompt or not (opt.chat and terminal.isatty(0)) then
  opt.prompt = opt.prompt or io.read "*a"
  prompts[1] = encode(opt.chat and messages_of(opt.prompt) or opt.prompt)
end
opt.budget = machine.budget
local rates = limit.rates(model)
local needs = plan.generation(model, prompts, opt, rates)
if opt.dry_run then
  cli.json(needs)
  os.exit(0)
end
if not needs.fits then
  cli.fail(("%s with %d sequences of %d tokens needs at least %s, the budget is %s (--memory and --ram set it)"):format(opt.model,
    math.max(#prompts, 1), needs.tokens, units.need(needs.minimum), units.bytes(machine.budget)))
end
cli.check(model:load { ring = needs.ring })
if opt.adapter then cli.check(lora.load(model, opt.adapter)) end
opt.together = needs.together
signals.handle(true)

local function say(_, text) io.stdout:write(text) io.stdout:flush() end

local function tell(report)
  io.stdout:flush()
  if opt.stats then
    cli.note("prompt: %d tokens, %.1f tokens/s; generation: %d tokens, %.2f tokens/s", report.prompt_tokens,
      report.prompt_tokens / report.prefill_seconds, report.new_tokens, report.decoded / math.max(report.decode_seconds, 1e-9))
    if model.ring and report.decode_bytes > 0 then
      local share, bound = limit.share({ flops = 0, bytes_read = report.decode_bytes }, rates, report.decode_seconds)
      cli.note("decoding read %s at %s: %.0f %% of the limit, bound by %s (%s measured)", units.bytes(report.decode_bytes),
        units.rate(report.decode_bytes / report.decode_seconds), 100 * share, bound, units.rate(rates.disk()))
    end
  end
end

local texts, report
if many then
  texts, report = completion.run(model, tokenizer, prompts, opt)
  local rows = {}
  for s, text in ipairs(texts) do rows[s] = { prompt = many[s], text = text } end
  if cli.wants_json() then
    cli.json(json.array(rows))
  else
    for _, row in ipairs(rows) do print(json.encode(row)) end
  end
  tell(report)
elseif opt.chat and not opt.prompt and terminal.isatty(0) then
  local history = opt.system and { { role = "system", content = opt.system } } or {}
  repeat
    io.stdout:write "> "
    io.stdout:flush()
    local line = io.read "*l"
    if line and line:find "%S" then
      history[#history + 1] = { role = "user", content = line }
      local ids = encode(history)
      opt.together = cli.check(completion.load(model, { ids }, opt, rates)).together -- the conversation has grown
      texts, report = completion.run(model, tokenizer, { ids }, opt, say)
      history[#history + 1] = { role = "assistant", content = texts[1] }
      print()
      tell(report)
    end
  until not line or (report and report.interrupted)
else
  texts, report = completion.run(model, tokenizer, prompts, opt, not cli.wants_json() and say or nil)
  if cli.wants_json() then
    cli.json { prompt = opt.prompt, text = texts[1], prompt_tokens = report.prompt_tokens, new_tokens = report.new_tokens,
      prefill_seconds = report.prefill_seconds, decode_seconds = report.decode_seconds }
  else
    print()
  end
  tell(report)
end
if report and report.interrupted then os.exit(128 + (signals.pending() or 2)) end
