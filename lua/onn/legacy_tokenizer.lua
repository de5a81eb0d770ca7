-- Tokenizers from before tokenizer.json: vocab.txt, or vocab.json with merges.txt. What the code of their family adds to these
-- files is written out here as the tokenizer.json that says the same.
local files = require "onn.files"
local json = require "onn.core.json"
local system = require "onn.core.system"

local legacy = {}

local FAMILIES = {
  bert = { needs = { "vocab.txt" }, unk = "[UNK]", sep = "[SEP]", pad = "[PAD]", cls = "[CLS]", mask = "[MASK]" },
  gpt2 = { needs = { "vocab.json", "merges.txt" }, unk = "<|endoftext|>", bos = "<|endoftext|>", eos = "<|endoftext|>" },
  roberta = { needs = { "vocab.json", "merges.txt" }, bos = "<s>", eos = "</s>", sep = "</s>", cls = "<s>", unk = "<unk>",
    pad = "<pad>", mask = "<mask>" },
  clip = { needs = { "vocab.json", "merges.txt" }, unk = "<|endoftext|>", bos = "<|startoftext|>", eos = "<|endoftext|>",
    pad = "<|endoftext|>" },
  qwen2 = { needs = { "vocab.json", "merges.txt" }, unk = "<|endoftext|>", eos = "<|endoftext|>", pad = "<|endoftext|>" },
}

-- By tokenizer_class, without "Fast" and "Tokenizer", and by config.json's model_type.
local NAMES = {}
for family, names in pairs {
  bert = "Bert bert DistilBert distilbert Electra electra MobileBert mobilebert ConvBert convbert LayoutLM layoutlm Lxmert lxmert",
  gpt2 = "GPT2 gpt2 gpt_neo gptj CodeGen codegen opt",
  roberta = "Roberta roberta Bart bart Longformer longformer LED led",
  clip = "CLIP clip clip_text_model",
  qwen2 = "Qwen2 qwen2 qwen2_moe qwen3 qwen3_moe",
} do
  for name in names:gmatch "%S+" do NAMES[name] = family end
end

local ROLES = { "bos", "eos", "unk", "sep", "pad", "cls", "mask" }
local CONVERSION = "transformers' AutoTokenizer.from_pretrained('%s').save_pretrained('%s') writes a tokenizer.json"

local function refusal(directory, why) return nil, ("%s: %s; %s"):format(directory, why, CONVERSION:format(directory, directory)), "unsupported" end

-- A JSON object that need not be there; or nil, message, code.
local function object(directory, name)
  local path = directory .. "/" .. name
  if not system.exists(path) then return {} end
  local value, message, code = files.read_json(path)
  if value == nil then return nil, message, code end
  if type(value) ~= "table" then return nil, path .. ": not an object", "format" end
  return value
end

local function family_of(directory, config, special)
  local class = type(config.tokenizer_class) == "string" and config.tokenizer_class:gsub("Fast$", "")
  if class and class ~= "PreTrainedTokenizer" then
    local family = NAMES[class:match "^(.-)Tokenizer$"]
    if family then return family end
    return refusal(directory, ("there is no tokenizer.json, and how a %s cuts text is not known"):format(config.tokenizer_class))
  end
  local model, message, code = object(directory, "config.json")
  if not model then return nil, message, code end
  if NAMES[model.model_type] then return NAMES[model.model_type] end
  if system.exists(directory .. "/vocab.txt") then return "bert" end
  return special.cls_token and "roberta" or "gpt2"
end

local function lines_of(text) return (text:gsub("\r\n", "\n"):gsub("\n$", "") .. "\n"):gmatch "([^\n]*)\n" end

local function read_vocab(directory, name)
  local path = directory .. "/" .. name
  local text, message, code = system.read_file(path, 2 ^ 26)
  if not text then return nil, message, code end
  if name == "vocab.json" then return json.decode(text, path) end
  local vocab, id = {}, 0
  for line in lines_of(text) do
    vocab[line], id = id, id + 1
  end
  return vocab
end

local function read_merges(directory)
  local text, message, code = system.read_file(directory .. "/merges.txt", 2 ^ 26)
  if not text then return nil, message, code end
  local merges = json.array {}
  for line in lines_of(text) do
    if line ~= "" and not line:find "^#version" then merges[#merges + 1] = line end
  end
  return merges
end

local function content(token)
  if type(token) == "table" then token = token.content end
  return type(token) == "string" and token or nil
end

-- The tokens that stand beside the vocabulary: those of added_tokens_decoder and added_tokens.json by id, then the roles'.
local function added_tokens(config, extra, roles, special)
  local list, seen, numbered = json.array {}, {}, {}
  local function add(token, id, is_special)
    local text, flags = content(token), type(token) == "table" and token or {}
    if not text or seen[text] then return end
    seen[text] = true
    list[#list + 1] = { id = id, content = text, single_word = flags.single_word == true, lstrip = flags.lstrip == true,
      rstrip = flags.rstrip == true, normalized = flags.normalized == true, special = is_special or flags.special == true }
  end
  for id, token in pairs(type(config.added_tokens_decoder) == "table" and config.added_tokens_decoder or {}) do
    numbered[#numbered + 1] = { tonumber(id) or 0, token }
  end
  for text, id in pairs(extra) do
    local is_special = special[text] ~= nil
    numbered[#numbered + 1] = { tonumber(id) or 0, { content = text, normalized = not is_special, special = is_special } }
  end
  table.sort(numbered, function(a, b) return a[1] < b[1] end)
  for _, entry in ipairs(numbered) do add(entry[2], entry[1], special[content(entry[2]) or ""] ~= nil) end
  for _, role in ipairs(ROLES) do add(roles[role], 0, true) end
  for _, token in ipairs(type(roles.additional) == "table" and roles.additional or {}) do add(token, 0, true) end
  return list
end

local function piece(name, segment) return { SpecialToken = { id = name, type_id = segment } } end
local function text(name, segment) return { Sequence = { id = name, type_id = segment } } end
local function sequence(kind, ...)
  return { type = "Sequence", [kind] = json.array { ... } }
end
local function byte_level(prefix, regex)
  return { type = "ByteLevel", add_prefix_space = prefix, trim_offsets = true, use_regex = regex }
end

-- What a family's code adds: build[family](spec, config, names of the roles' tokens, id of a token).
local build = {}

function build.bert(spec, config, names)
  local strip, cls, sep = config.strip_accents, names.cls, names.sep
  if type(strip) ~= "boolean" then strip = json.null end
  spec.model = { type = "WordPiece", unk_token = names.unk, continuing_subword_prefix = "##", max_input_chars_per_word = 100 }
  spec.normalizer = { type = "BertNormalizer", clean_text = true, handle_chinese_chars = config.tokenize_chinese_chars ~= false,
    strip_accents = strip, lowercase = config.do_lower_case ~= false }
  spec.pre_tokenizer = { type = "BertPreTokenizer" }
  spec.decoder = { type = "WordPiece", prefix = "##", cleanup = true }
  spec.post_processor = { type = "TemplateProcessing", special_tokens = {},
    single = json.array { piece(cls, 0), text("A", 0), piece(sep, 0) },
    pair = json.array { piece(cls, 0), text("A", 0), piece(sep, 0), text("B", 1), piece(sep, 1) } }
end

function build.gpt2(spec, config, names)
  spec.model = { type = "BPE" }
  spec.pre_tokenizer = byte_level(config.add_prefix_space == true, true)
  spec.decoder = byte_level(true, true)
  if config.add_bos_token == true and names.bos then
    spec.post_processor = { type = "TemplateProcessing", special_tokens = {}, single = json.array { piece(names.bos, 0), text("A", 0) },
      pair = json.array { piece(names.bos, 0), text("A", 0), piece(names.bos, 1), text("B", 1) } }
  end
end

local function around(spec, first, last, id)
  spec.post_processor = { type = "RobertaProcessing", cls = json.array { first, id(first) }, sep = json.array { last, id(last) },
    trim_offsets = true, add_prefix_space = false }
end

function build.roberta(spec, config, names, id)
  build.gpt2(spec, { add_prefix_space = config.add_prefix_space }, names)
  around(spec, names.cls, names.sep, id)
end

function build.clip(spec, _, names, id)
  spec.model = { type = "BPE", end_of_word_suffix = "</w>", unk_token = names.unk }
  spec.normalizer = sequence("normalizers", { type = "NFC" }, { type = "Replace", pattern = { Regex = "\\s+" }, content = " " },
    { type = "Lowercase" })
  spec.pre_tokenizer = sequence("pretokenizers", { type = "Split", behavior = "Removed", invert = true, pattern = {
    Regex = "<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+" } },
    byte_level(false, true))
  spec.decoder = byte_level(true, true)
  around(spec, names.bos, names.eos, id)
end

function build.qwen2(spec, config)
  spec.model = { type = "BPE" }
  spec.normalizer = { type = "NFC" }
  spec.pre_tokenizer = sequence("pretokenizers", { type = "Split", behavior = "Isolated", invert = false, pattern = {
    Regex = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+" } },
    byte_level(config.add_prefix_space == true, false))
  spec.decoder = byte_level(true, true)
end

-- The roles' tokens: those of the family, of special_tokens_map.json, and of tokenizer_config.json, whose word is the last.
local function read_roles(family, map, config)
  local roles, names, special = {}, {}, {}
  for _, role in ipairs(ROLES) do
    roles[role] = family[role]
    for _, from in ipairs { map, config } do
      local given = from[role .. "_token"]
      if given == json.null then roles[role] = nil elseif content(given) then roles[role] = given end
    end
    names[role] = content(roles[role])
    if names[role] then special[names[role]] = true end
  end
  roles.additional = type(config.additional_special_tokens) == "table" and config.additional_special_tokens
    or map.additional_special_tokens
  for _, token in ipairs(type(roles.additional) == "table" and roles.additional or {}) do special[content(token) or ""] = true end
  return roles, names, special
end

-- read(directory, config): the text of a tokenizer.json, and the roles' tokens ({ bos = "<s>", ... }); or nil, message, code.
-- config is what tokenizer_config.json holds.
function legacy.read(directory, config)
  local function has(name) return system.exists(directory .. "/" .. name) end
  if not (has "vocab.txt" or (has "vocab.json" and has "merges.txt")) then
    for _, name in ipairs { "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model", "tekken.json" } do
      if has(name) then return refusal(directory, ("there is no tokenizer.json, only %s"):format(name)) end
    end
    return nil, ("%s: there is no tokenizer.json, nor vocab.json with merges.txt, nor vocab.txt"):format(directory), "io"
  end
  local map, extra, vocab, merges, message, code
  map, message, code = object(directory, "special_tokens_map.json")
  if not map then return nil, message, code end
  extra, message, code = object(directory, "added_tokens.json")
  if not extra then return nil, message, code end
  local name
  name, message, code = family_of(directory, config, map)
  if not name then return nil, message, code end
  local family = FAMILIES[name]
  for _, file in ipairs(family.needs) do
    if not has(file) then return nil, ("%s: a tokenizer of the family %s without %s"):format(directory, name, file), "io" end
  end
  vocab, message, code = read_vocab(directory, family.needs[1])
  if vocab == nil then return nil, message, code end
  if type(vocab) ~= "table" or vocab[1] then return nil, directory .. "/vocab.json: not an object", "format" end
  if family.needs[2] then
    merges, message, code = read_merges(directory)
    if not merges then return nil, message, code end
  end
  local roles, names, special = read_roles(family, map, config)
  for _, role in ipairs(ROLES) do
    if family[role] and not names[role] and (role == "cls" or role == "sep" or (role == "unk" and name == "bert")) then
      return nil, ("%s: a tokenizer of the family %s without a %s_token"):format(directory, name, role), "format"
    end
  end
  local spec = { version = "1.0", added_tokens = added_tokens(config, extra, roles, special) }
  build[name](spec, config, names, function(token) return vocab[token] or json.null end)
  spec.model.vocab, spec.model.merges = vocab, merges
  return json.encode(spec), names
end

return legacy
