-- demo: the main job in two minutes, on a small model that is made here and needs no download
local cli = require "onn.cli"
local json = require "onn.core.json"
local plot = require "onn.plot"
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
  },
}

local settings = { stories = 3000, steps = 400, model = require("onn.demo_model").config }

local began, color = system.now(), terminal.isatty(1) and (os.getenv "NO_COLOR" or "") == ""
local function paint(code, text) return color and ("\27[%sm%s\27[0m"):format(code, text) or text end
local chapter = 0
local function heading(title, text)
  chapter = chapter + 1
  print(paint("1;36", ("\n== %d. %s "):format(chapter, title) .. ("="):rep(math.max(3, 88 - #title))))
  if text then print(text) end
  io.stdout:flush()
end

-- Runs another recipe, shown as the command that does the same by hand.
local function onn(words, quietly)
  local shown = {}
  for i, word in ipairs(words) do shown[i] = word:find "[^%w%-_./=]" and "'" .. word:gsub("'", "'\\''") .. "'" or word end
  local exe = cli.check(system.realpath "/proc/self/exe")
  if quietly then
    local child = cli.check(system.spawn { exe, unpack(words) })
    if child.status ~= 0 then cli.fail(child.stderr, child.status) end
    return child.stdout
  end
  print(paint("2", "$ onn " .. table.concat(shown, " ")))
  io.stdout:flush()
  local status = os.execute("'" .. exe .. "' " .. table.concat(shown, " "))
  if status ~= 0 then os.exit(status > 255 and math.floor(status / 256) or 128 + status) end
end

local function write_lines(path, rows)
  local lines = {}
  for i, row in ipairs(rows) do lines[i] = json.encode(type(row) == "table" and row or { text = row }) end
  cli.check(system.write_file(path, table.concat(lines, "\n") .. "\n"))
end

local function read_lines(text)
  local rows = {}
  for line in text:gmatch "[^\n]+" do rows[#rows + 1] = cli.check(json.decode(line)) end
  return rows
end

-- --- 1: the world -----------------------------------------------------------------------------------------------------
local world = dofile(program.home .. "/recipes/demo/corpus.lua").make(opt.seed, settings.stories)
local text, hash = table.concat(world.documents, "\n"), 0
for byte in (text .. json.encode(settings)):gmatch "." do hash = (hash * 31 + byte:byte()) % 2 ^ 32 end
local cache = os.getenv "XDG_CACHE_HOME" or (os.getenv "HOME" or ".") .. "/.cache"
local home = opt.out or ("%s/onn/demo-%08x"):format(cache, hash)
local function at(name) return home .. "/" .. name end
cli.check(system.mkdir_p(home))
write_lines(at "stories.jsonl", world.documents)
write_lines(at "questions.jsonl", world.train)
write_lines(at "held-out.jsonl", world.held_out)
heading("A world to learn", ("%d stories about 48 people, %s; made from seed %d. One of them:\n  %s"):format(#world.documents,
  units.bytes(#text), opt.seed, paint("33", world.documents[1])))

-- --- 2: pretraining ---------------------------------------------------------------------------------------------------
heading("Pretraining", "A llama with random weights reads the stories. Its tokenizer is learnt from them too.")
if opt.fresh or not system.exists(at "model") then
  onn { "pretrain", json.encode(settings.model), at "stories.jsonl", "--out", at "new", "--vocabulary", "1024", "--batch", "16",
    "--seq-len", "128", "--steps", tostring(settings.steps), "--lr", "0.003", "--log", at "pretrain.log", "--overwrite" }
  system.remove_tree(at "model")
  cli.check(system.rename(at "new", at "model"))
else
  print("kept from an earlier run in " .. at "model" .. " (--fresh trains it again)")
end
print "It can tell stories now:"
onn { "generate", at "model", "--prompt", "It was a cold morning.", "--temperature", "0.7", "--max-tokens", "60", "--stats" }

-- --- 3 to 5: the machine, the model, the settings ----------------------------------------------------------------------
heading("The machine", "What it can do at most, measured. Later figures are shares of this.")
onn { "profile" }
heading("The model")
onn { "inspect", at "model" }
heading "Settings for this machine and this model"
if system.exists(program.home .. "/recipes/optimize.lua") then
  onn { "optimize", at "model", at "questions.jsonl", "--budget", "20s" }
else
  print "skipped: this build has no recipe `optimize`"
end

-- --- 6: fine-tuning ----------------------------------------------------------------------------------------------------
local function answers(...)
  local rows = read_lines(onn({ "generate", at "model", "--prompts", at "held-out.jsonl", "--temperature", "0", "--max-tokens", "16",
    "--stop", "\n", "--quiet", ... }, true))
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
onn { "train", at "model", at "questions.jsonl", "--out", at "adapter", "--overwrite", "--rank", "16", "--epochs", "8", "--batch", "12",
  "--seq-len", "64", "--lr", "0.003", "--eval", at "held-out.jsonl", "--log", at "train.log" }
local after, share_after = answers("--adapter", at "adapter")

heading("Before and after", "Held-out questions; the same model without and with its adapter.")
local function cut(line) line = line:gsub("%s+", " ") return #line > 40 and line:sub(1, 39) .. "…" or line end
local rows = {}
for i = 1, 10 do
  local n = (i - 1) * 6 + 1
  rows[i] = { question = before[n].prompt:match "Question: (.-)\n", before = cut(before[n].text),
    after = cut(after[n].text), truth = after[n].right and "right" or "it is:" .. world.held_out[n].completion }
end
print(cli.table(rows, { "question", { "before", title = "before" }, { "after", title = "after" }, { "truth", title = "" } }))
print(plot.bars({ { "before", share_before * 100 }, { "after", share_after * 100 } }, { title = "\nright answers", format = "%.0f %%" }))

-- --- 7: summary ----------------------------------------------------------------------------------------------------------
heading "Summary"
local log = read_lines(cli.check(system.read_file(at "train.log")))
local tokens, seconds, limit = 0, 0, 0
for _, r in ipairs(log) do tokens, seconds, limit = tokens + r.tokens, seconds + r.seconds, limit + r.limit_share * r.seconds end
print(("right answers  %.0f %% -> %.0f %% of %d held-out questions"):format(share_before * 100, share_after * 100, #after))
print(("training loss  %.3f -> %.3f in %d updates, %s"):format(log[1].loss, log[#log].loss, #log, units.seconds(seconds)))
print(("speed          %.0f tokens/s, %.0f %% of what this machine's arithmetic allows"):format(tokens / seconds, 100 * limit / seconds))
print(("time           %s in all"):format(units.seconds(system.now() - began)))
print(("kept in        %s: model/, adapter/, the data and the logs"):format(home))
print(([[
next           onn generate %s --adapter %s --prompt 'Question: Where does Mara live?
               Answer:'
               onn train YOUR-MODEL YOUR-DATA.jsonl        any llama, mistral, qwen or phi-3 directory from Hugging Face
               onn --help                                  all recipes; each is a file in recipes/ to read and change]]):format(
  at "model", at "adapter"))
