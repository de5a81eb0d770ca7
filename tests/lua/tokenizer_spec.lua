-- Opening a tokenizer by directory: files from before tokenizer.json against transformers, with what fixtures/make_legacy.py
-- recorded; what is refused; the command tokenize.
local Tokenizer = require "onn.tokenizer"
local fresh = require "onn.fresh"
local json = require "onn.core.json"
local support = require "tests.support"

local HERE = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local golden = assert(json.decode(support.read(HERE .. "fixtures/legacy.json")))

local function directory(files)
  local path = support.scratch()
  for name, text in pairs(files) do support.write(path .. "/" .. name, text) end
  return path
end

local function ids(list) return table.concat(list, " ") end

describe("a tokenizer from before tokenizer.json", function()
  teardown(support.scratch_remove)

  for _, case in ipairs(golden.cases) do
    it("gives the reference's ids: " .. case.directory, function()
      local tokenizer = assert(Tokenizer.open(directory(golden.directories[case.directory])))
      for i, text in ipairs(golden.texts) do
        assert.are.equal(ids(case.plain[i]), tokenizer:encode(text):concat " ", text)
        assert.are.equal(ids(case.framed[i]), tokenizer:encode(text, { add_special_tokens = true }):concat " ", text)
      end
      local pair, segments = tokenizer:encode(golden.texts[1], { add_special_tokens = true, pair = golden.texts[2] })
      assert.are.equal(ids(case.pair[1]), pair:concat " ")
      assert.are.equal(#pair, #segments)
      if case.directory:find "^bert" then assert.are.equal(ids(case.pair[2]), segments:concat " ") end
      for role, token in pairs(case.roles) do assert.are.equal(token, tokenizer[role .. "_token"], role) end
    end)
  end

  it("becomes the tokenizer.json of a model that is made afresh", function()
    local from, to, config = directory(golden.directories.gpt2), support.scratch(), { vocab_size = 1000 }
    assert(fresh.tokenizer(to, config, { tokenizer = from }))
    local old, new = assert(Tokenizer.open(from)), assert(Tokenizer.open(to .. "/tokenizer.json"))
    for _, text in ipairs(golden.texts) do assert.are.equal(old:encode(text):concat " ", new:encode(text):concat " ") end
    assert.are.same({ old.eos_id, old.bos_id }, { config.eos_token_id, config.bos_token_id })
    assert.is_number(old.eos_id)
  end)

  local vocab = golden.directories.gpt2["vocab.json"]
  local merges = golden.directories.gpt2["merges.txt"]
  for name, case in pairs {
    ["only a SentencePiece model"] = { { ["tokenizer.model"] = "x" }, "unsupported", "only tokenizer.model; transformers' AutoTokenizer" },
    ["only a T5 model"] = { { ["spiece.model"] = "x" }, "unsupported", "save_pretrained(" },
    ["nothing"] = { {}, "io", "no tokenizer.json, nor vocab.json" },
    ["a class that is not known"] = { { ["vocab.json"] = vocab, ["merges.txt"] = merges,
      ["tokenizer_config.json"] = '{"tokenizer_class":"WhisperTokenizer"}' }, "unsupported", "WhisperTokenizer" },
    ["the wrong files for its class"] = { { ["vocab.txt"] = "a\n", ["tokenizer_config.json"] = '{"tokenizer_class":"GPT2Tokenizer"}' },
      "io", "gpt2 without vocab.json" },
    ["a vocabulary that is none"] = { { ["vocab.json"] = "[1]", ["merges.txt"] = merges }, "format", "vocab.json: not an object" },
    ["a vocabulary that is no JSON"] = { { ["vocab.json"] = "{", ["merges.txt"] = merges }, "format", "vocab.json" },
    ["merges of what there is not"] = { { ["vocab.json"] = vocab, ["merges.txt"] = "☃ a\n" }, "format", "☃" },
    ["a special_tokens_map that is none"] = { { ["vocab.txt"] = "a\n", ["special_tokens_map.json"] = "3" }, "format", "not an object" },
    ["no [CLS]"] = { { ["vocab.txt"] = "a\n[UNK]\n", ["tokenizer_config.json"] = '{"cls_token":null}' }, "format", "without a cls_token" },
  } do
    it("is refused in one line: " .. name, function()
      local path = directory(case[1])
      local tokenizer, message, code = Tokenizer.open(path)
      assert.is_nil(tokenizer)
      assert.are.equal(case[2], code, message)
      assert.is_truthy(message:find(case[3], 1, true), message)
      assert.is_truthy(message:find(path, 1, true), message)
      assert.is_nil(message:find "\n")
    end)
  end
end)

describe("onn tokenize", function()
  it("puts special tokens around a text and a pair, and back", function()
    local path = directory(golden.directories.bert)
    local status, out = support.run { "tokenize", path, "the hand", "--add-special-tokens" }
    assert.are.same({ 0, "2 31 32 3\n" }, { status, out })
    status, out = support.run { "tokenize", path, "the", "--add-special-tokens", "--pair", "hand" }
    assert.are.same({ 0, "2 31 3 32 3\n" }, { status, out })
    status, out = support.run { "tokenize", path, "2 31 3 32 3", "--decode" }
    assert.are.same({ 0, "the hand" }, { status, out })
    local _, message
    status, _, message = support.run { "tokenize", path, "the", "--pair", "hand" }
    assert.are_not.equal(0, status)
    assert.is_truthy(message:find("--add-special-tokens", 1, true), message)
  end)
end)
