-- generate: text from a model, as it comes
local chat = require "onn.chat"
local cli = require "onn.cli"
local json = require "onn.core.json"
local generator = require "onn.generator"
local lora = require "onn.nn.lora"
local Model = require "onn.model"
local runtime = require "onn.runtime"
local settings = require "onn.settings"
local signals = require "onn.core.signals"
local stop = require "onn.stop"
local terminal = require "onn.core.terminal"
local Tokenizer = require "onn.tokenizer"

local opt = cli.parse {
  name = "generate",
  summary = "Continues a prompt, or answers with --chat. Only the text goes to standard output.",
  example = 'onn generate models/smollm2 --chat --prompt "What is the capital of France?"',
  arguments = { { "MODEL", "model directory" } },
  options = {
    { "prompt", type = "string", help = "the text to continue; standard input without it" },
    { "prompts", type = "string", metavar = "FILE", help = 'JSON lines of {"prompt"}, decoded together; one {"prompt","text"} a line comes out' },
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
  },
}
settings.apply(opt, opt.model)
runtime.apply(opt)

local model = cli.check(Model.open(opt.model, { dtype = opt.dtype }))
if #model.missing > 0 then cli.fail(model:why_not()) end
local tokenizer = cli.check(Tokenizer.open(model.directory))
if opt.dry_run then
  local plan = require("onn.plan").generation(model, opt)
  cli.json(plan)
  os.exit(0)
end
local template = opt.chat and cli.check(chat.template(tokenizer))
cli.check(model:load())
if opt.adapter then cli.check(lora.load(model, opt.adapter)) end
local stops = stop.ids(model, tokenizer)
signals.handle(true)

local function encode(messages_or_text)
  if type(messages_or_text) == "string" then return tokenizer:encode(messages_or_text, { special = true, bos = true }):totable() end
  local text = cli.check(chat.render(template, tokenizer, messages_or_text, true))
  return tokenizer:encode(text, { special = true, bos = false }):totable()
end

-- Runs prompts together; show(sequence, text) gets pieces as they come. Returns the texts and the report.
local function run(prompts, show)
  local streams, watchers, texts = {}, {}, {}
  for s, ids in ipairs(prompts) do
    if #ids == 0 then cli.fail "the prompt is empty" end
    streams[s], watchers[s], texts[s] = tokenizer:stream(ids), stop.watch(opt.stop or {}), {}
  end
  local function give(s, text)
    if text == "" then return end
    texts[s][#texts[s] + 1] = text
    if show then show(s, text) end
  end
  local report = generator.run(model, prompts, stops, opt, function(s, id)
    local text, ended = watchers[s].push(streams[s]:push(id))
    give(s, text)
    if ended then watchers[s].ended = true end
    return ended
  end)
  for s in ipairs(prompts) do
    if not watchers[s].ended then
      local text, ended = watchers[s].push(streams[s]:finish())
      give(s, text)
      if not ended then give(s, watchers[s].finish()) end
    end
    texts[s] = table.concat(texts[s])
  end
  return texts, report
end

local function stats(report)
  if not opt.stats then return end
  cli.note("prompt: %d tokens, %.1f tokens/s; generation: %d tokens, %.1f tokens/s", report.prompt_tokens,
    report.prompt_tokens / report.prefill_seconds, report.new_tokens, report.decoded / math.max(report.decode_seconds, 1e-9))
end

local function say(_, text) io.stdout:write(text) io.stdout:flush() end

local function messages_of(text, history)
  local list = history or (opt.system and { { role = "system", content = opt.system } }) or {}
  list[#list + 1] = { role = "user", content = text }
  return list
end

local report
if opt.prompts then
  local prompts, originals = {}, {}
  for line in assert(io.lines(opt.prompts)) do
    if line:find "%S" then
      local row = cli.check(json.decode(line, opt.prompts))
      if type(row) ~= "table" or type(row.prompt) ~= "string" then cli.fail(opt.prompts .. ': every line should be {"prompt": "..."}') end
      originals[#originals + 1] = row.prompt
      prompts[#prompts + 1] = encode(opt.chat and messages_of(row.prompt) or row.prompt)
    end
  end
  local texts
  texts, report = run(prompts)
  for s, text in ipairs(texts) do print(json.encode { prompt = originals[s], text = text }) end
  stats(report)
elseif opt.chat and not opt.prompt and terminal.isatty(0) then
  local history = opt.system and { { role = "system", content = opt.system } } or {}
  while true do
    io.stdout:write "> "
    io.stdout:flush()
    local line = io.read "*l"
    if not line then break end
    local texts
    messages_of(line, history)
    texts, report = run({ encode(history) }, say)
    history[#history + 1] = { role = "assistant", content = texts[1] }
    print()
    stats(report)
    if report.interrupted then break end
  end
else
  local text = opt.prompt or io.read "*a"
  local texts
  texts, report = run({ encode(opt.chat and messages_of(text) or text) }, not cli.wants_json() and say or nil)
  if cli.wants_json() then
    cli.json { prompt = text, text = texts[1], prompt_tokens = report.prompt_tokens, new_tokens = report.new_tokens,
      prefill_seconds = report.prefill_seconds, decode_seconds = report.decode_seconds }
  else
    print()
  end
  stats(report)
end
if report and report.interrupted then os.exit(128 + (signals.pending() or 2)) end
