-- demo: the main job in two minutes, on a small model that is made here and needs no download
local cli = require "onn.cli"
local json = require "onn.core.json"
local plot = require "onn.plot"
local profile = require "onn.profile"
local program = require "onn.core.program"
local system = require "onn.core.system"
local terminal = require "onn.core.terminal"
local units = require "onn.units"

local opt = cli.parse {
  name = "demo",
  summary = "Pretrains a small llama on stories about a village, profiles, inspects, optimises, and teaches it to answer questions.",
  example = "onn demo",
  options = {
    { "fresh", help = "pretrain again, although an earlier run's model is kept" },
    { "out", type = "string", metavar = "DIR", help = "where the model is kept (default: the user's cache)" },
    { "stories", type = "integer", default = 3000, min = 48, help = "stories to make" },
    { "steps", type = "integer", default = 1000, min = 1, help = "updates of pretraining" },
    { "epochs", type = "integer", default = 12, min = 1, help = "passes of fine-tuning over the questions" },
    { "budget", type = "duration", default = 20, min = 2, help = "what `optimize` may take" },
  },
}

local config = require("onn.demo_model").config

local began, silent = system.now(), opt.json or opt.quiet
local color = terminal.isatty(1) and (os.getenv "NO_COLOR" or "") == "" and os.getenv "TERM" ~= "dumb"
local function paint(code, text) return color and ("\27[%sm%s\27[0m"):format(code, text) or text end
local chapter = 0
local function heading(title, text)
  chapter = chapter + 1
  cli.print(paint("1;36", ("\n== %d. %s "):format(chapter, title) .. ("="):rep(math.max(3, 88 - #title))))
  if text then cli.print(text) end
end

-- --- running the other recipes ----------------------------------------------------------------------------------------
local function quoted(word) return word:find "[^%w%-_./=]" and "'" .. word:gsub("'", "'\\''") .. "'" or word end

local passed = { "--seed", tostring(opt.seed) }
for _, name in ipairs { "device", "memory", "ram", "threads", "dtype" } do
  if opt._given[name] then passed[#passed + 1] = ("--%s=%s"):format(name, tostring(opt[name])) end
end

-- Ends the demo as the recipe under it ended, with nothing half-made left.
local function ended(status, signal, message, unfinished)
  if unfinished and system.exists(unfinished) then
    system.remove_tree(unfinished)
    cli.note("%s was not finished and is removed; the next run begins it again", unfinished)
  end
  if signal > 0 then status = 128 + signal end
  if message and message ~= "" then io.stderr:write(message) end
  os.exit(status)
end

-- Runs a recipe in sight, shown as the command that does the same by hand. `unfinished` is removed if it fails.
local function onn(words, unfinished)
  local exe, shown = cli.check(system.realpath "/proc/self/exe"), {}
  for i, word in ipairs(words) do shown[i] = quoted(word) end
  for _, word in ipairs(passed) do shown[#shown + 1] = quoted(word) end
  cli.print(paint("2", "$ onn " .. table.concat(shown, " ")))
  io.stdout:flush()
  local status = os.execute(("exec %s %s%s"):format(quoted(exe), table.concat(shown, " "), silent and " --quiet >/dev/null" or ""))
  if status ~= 0 then ended(math.floor(status / 256), status % 128, nil, unfinished) end
end

-- Runs a recipe out of sight; returns what it printed.
local function answer_of(words)
  local argv = { cli.check(system.realpath "/proc/self/exe"), unpack(words) }
  for _, word in ipairs(passed) do argv[#argv + 1] = word end
  local child = cli.check(system.spawn(argv))
  if child.status ~= 0 or child.signal > 0 then ended(child.status, child.signal, child.stderr) end
  return child.stdout
end

local function write_lines(path, rows)
  local lines = {}
  for i, row in ipairs(rows) do lines[i] = json.encode(type(row) == "table" and row or { text = row }) end
  return system.write_file(path, table.concat(lines, "\n") .. "\n")
end

local function read_lines(text)
  local rows = {}
  for line in text:gmatch "[^\n]+" do rows[#rows + 1] = cli.check(json.decode(line)) end
  return rows
end

-- --- the world --------------------------------------------------------------------------------------------------------
local world = dofile(program.home .. "/recipes/demo/corpus.lua").make(opt.seed, opt.stories)
local text, hash = table.concat(world.documents, "\n"), 0
for byte in (text .. json.encode { config, opt.steps }):gmatch "." do hash = (hash * 31 + byte:byte()) % 2 ^ 32 end
local home = opt.out or ("%s/demo-%08x"):format(profile.cache_directory(), hash)
if opt.dry_run then
  cli.note("would keep everything in %s; %s", home, system.exists(home .. "/model") and "the pretrained model is there"
    or ("would pretrain for %d updates"):format(opt.steps))
  if opt.json then cli.json { home = home } end
  os.exit(0)
end
local function at(name) return home .. "/" .. name end
local function write_data()
  local ok, message = system.mkdir_p(home)
  if ok then ok, message = write_lines(at "stories.jsonl", world.documents) end
  if ok then ok, message = write_lines(at "questions.jsonl", world.train) end
  if ok then ok, message = write_lines(at "held-out.jsonl", world.held_out) end
  if ok then ok, message = system.write_file(at "config.json", json.encode(config, { pretty = true }) .. "\n") end
  return ok, message
end
local written, message = write_data()
if not written and not opt.out then -- a home that cannot be written
  cli.note("%s: everything goes to a temporary folder, where a later run does not find it", message)
  home = cli.check(system.make_temp_dir())
  written, message = write_data()
end
cli.check(written, message)
heading("A world to learn", ("%d stories about 48 people, %s; made from seed %d. One of them:\n  %s"):format(#world.documents,
  units.bytes(#text), opt.seed, paint("33", world.documents[1])))

-- --- pretraining ------------------------------------------------------------------------------------------------------
heading("Pretraining", "A llama with random weights reads the stories. Its tokenizer is learnt from them too.")
if opt.fresh or not system.exists(at "model") then
  onn({ "pretrain", at "config.json", at "stories.jsonl", "--out", at "new", "--vocabulary", "1024", "--batch", "8", "--seq-len", "128",
    "--steps", tostring(opt.steps), "--lr", "0.004", "--log", at "pretrain.log", "--overwrite" }, at "new")
  system.remove_tree(at "model")
  cli.check(system.rename(at "new", at "model"))
else
  cli.print("kept from an earlier run in " .. at "model" .. " (--fresh trains it again)")
end
cli.print "It can tell stories now:"
onn { "generate", at "model", "--prompt", "It was a cold morning.", "--temperature", "0.7", "--max-tokens", "60", "--stats" }

-- --- the machine, the model, the settings -------------------------------------------------------------------------------
heading("The machine", "What it can do at most, measured. Later figures are shares of this.")
onn { "profile" }
heading "The model"
onn { "inspect", at "model" }
heading "Settings for this machine and this model"
onn { "optimize", at "model", at "questions.jsonl", "--batch", "6", "--seq-len", "64", "--rank", "16", "--budget", opt.budget .. "s" }

-- --- fine-tuning --------------------------------------------------------------------------------------------------------
-- What the model answers to the held-out questions, and the share that is right.
local function answers(...)
  local rows = read_lines(answer_of { "generate", at "model", "--prompts", at "held-out.jsonl", "--temperature", "0", "--max-tokens", "16",
    "--stop", "\n", "--quiet", ... })
  local right = 0
  for i, row in ipairs(rows) do
    row.right = row.text == world.held_out[i].completion
    right = right + (row.right and 1 or 0)
  end
  return rows, right / #rows
end

heading("Fine-tuning", ("It has never seen a question. %d about 36 people are in the training set; the other 12 people's %d are kept back:\n"
  .. "to answer those it must find what the stories told. LoRA: the model stays as it is, small matrices beside it learn."):format(
  #world.train, #world.held_out))
local before, share_before = answers()
cli.print(("Right answers to the %d kept back, before: %.0f %%"):format(#before, share_before * 100))
onn { "train", at "model", at "questions.jsonl", "--out", at "adapter", "--overwrite", "--rank", "16", "--epochs", tostring(opt.epochs),
  "--batch", "6", "--seq-len", "64", "--lr", "0.002", "--eval", at "held-out.jsonl", "--log", at "train.log" }
local after, share_after = answers("--adapter", at "adapter")

heading("Before and after", "Questions kept back; the same model without and with its adapter.")
local function cut(line)
  line = line:gsub("^%s+", ""):gsub("%s+", " ")
  return #line > 34 and line:sub(1, 32) .. ".." or line
end
local rows = {}
for i = 1, #after, 7 do -- another question of another person each time
  rows[#rows + 1] = { question = before[i].prompt:match "Question: (.-) Answer:", before = cut(before[i].text), after = cut(after[i].text),
    truth = after[i].right and "right" or "wrong:" .. world.held_out[i].completion }
end
cli.print(cli.table(rows, { "question", { "before", title = "before" }, { "after", title = "after" }, { "truth", title = "" } }))
cli.print(plot.bars({ { "before", share_before * 100 }, { "after", share_after * 100 } }, { title = "\nright answers", format = "%.0f %%" }))

-- --- summary --------------------------------------------------------------------------------------------------------------
heading "Summary"
local log = read_lines(cli.check(system.read_file(at "train.log")))
local tokens, seconds, limit = 0, 0, 0
for _, r in ipairs(log) do tokens, seconds, limit = tokens + r.tokens, seconds + r.seconds, limit + r.limit_share * r.seconds end
cli.print(("right answers  %.0f %% -> %.0f %% of %d questions kept back"):format(share_before * 100, share_after * 100, #after))
cli.print(("training loss  %.3f -> %.3f in %d updates, %s"):format(log[1].loss, log[#log].loss, #log, units.seconds(seconds)))
cli.print(("speed          %.0f tokens/s, %.0f %% of what this machine's arithmetic allows"):format(tokens / seconds, 100 * limit / seconds))
cli.print(("time           %s in all"):format(units.seconds(system.now() - began)))
cli.print(("kept in        %s: model/, adapter/, the data and the logs"):format(home))
local name = world.held_out[1].prompt:match "does (%u%l+)"
local command = quoted(arg[-1])
cli.print(([[

next
  %s generate %s --adapter %s --temperature 0 --prompt 'Question: Where does %s live? Answer:'
  %s train YOUR-MODEL YOUR-DATA.jsonl     any llama, mistral, qwen2, qwen3 or phi-3 directory from Hugging Face
  %s --help                               all recipes; each is a file in recipes/ to read and change]]):format(
  command, quoted(at "model"), quoted(at "adapter"), name, command, command))
if opt.json then
  cli.json { home = home, questions = #after, accuracy_before = share_before, accuracy_after = share_after, loss_first = log[1].loss,
    loss_last = log[#log].loss, updates = #log, tokens_per_s = tokens / seconds, limit_share = limit / seconds,
    seconds = system.now() - began }
end
