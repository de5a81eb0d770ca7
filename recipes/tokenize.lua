-- tokenize: text to token ids and back, with a model's tokenizer
local cli = require "onn.cli"
local Tokenizer = require "onn.tokenizer"

local opt = cli.parse {
  name = "tokenize",
  summary = "Token ids of TEXT, or of standard input taken byte for byte, as the model's tokenizer makes them.",
  example = 'onn tokenize models/smollm2 "Hello"; echo "19556" | onn tokenize models/smollm2 --decode',
  arguments = { { "MODEL", "model directory or tokenizer.json" }, { "TEXT", "text, or ids; standard input without it", optional = true } },
  options = {
    { "decode", help = "turn ids back into text, written byte for byte" },
    { "special", negate = true, help = "special tokens are parsed in TEXT (so anyway; --no-special: text) and shown by --decode" },
    { "bos", help = "begin with the model's beginning-of-text token" },
    { "add-special-tokens", help = "put around TEXT what the model's post-processor asks for, such as [CLS] and [SEP]" },
    { "pair", type = "string", help = "a second text, for --add-special-tokens" },
  },
}

local function read_ids(text)
  local rest = text:gsub("^%s*%[(.*)%]%s*$", "%1")
  local ids = Tokenizer.ids()
  for word in rest:gmatch "[^%s,]+" do
    local id = word:match "^%d+$" and tonumber(word)
    if not id or id >= 2 ^ 31 then cli.fail(("'%s' is no token id"):format(word:sub(1, 40))) end
    ids:append(id)
  end
  return ids
end

local tokenizer = cli.check(Tokenizer.open(opt.model))
local text = opt.text or io.read "*a"

if opt.decode then
  local ids = read_ids(text)
  for i = 1, #ids do
    if not tokenizer:token(ids[i]) then cli.fail(("%s has no token %d"):format(tokenizer.name or opt.model, ids[i])) end
  end
  local decoded = tokenizer:decode(ids, { skip_special = not opt.special })
  if cli.wants_json() then cli.json(decoded) else io.write(decoded) end
  os.exit(0)
end

if opt.pair and not opt.add_special_tokens then cli.fail "--pair needs --add-special-tokens" end
if opt.bos and opt.add_special_tokens then cli.fail "of --bos and --add-special-tokens one excludes the other" end
local ids = tokenizer:encode(text, { special = opt.special or not opt._given.special, bos = opt.bos,
  add_special_tokens = opt.add_special_tokens, pair = opt.pair })
if opt.bos and #tokenizer:prefix() == 0 and not tokenizer.add_bos then
  if not tokenizer.bos_id then cli.fail(("%s: its files name no beginning-of-text token"):format(opt.model)) end
  ids = Tokenizer.ids(tokenizer.bos_id):append(ids)
end
if cli.wants_json() then io.write("[", ids:concat ",", "]\n") else io.write(ids:concat(), "\n") end
