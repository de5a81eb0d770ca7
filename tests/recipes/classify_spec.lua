-- Texts with labels, from rows to a classifier that is right, and embeddings: through the recipes, with a tiny encoder.
local arch = require "onn.arch"
local core = require "onn.core.ops"
local Engine = require "onn.engine"
local json = require "onn.core.json"
local stores = require "onn.core.store"
local support = require "tests.support"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"
require "onn.tensor"

local words = { "[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "meal", "song", "was", "the", "a" }

local function tokenizer()
  local vocab = {}
  for i, word in ipairs(words) do vocab[word] = i - 1 end
  local function special(id) return { id = id, content = words[id + 1], single_word = false, lstrip = false, rstrip = false,
    normalized = false, special = true } end
  local function piece(name, kind) return { [kind] = { id = name, type_id = 0 } } end
  return { version = "1.0", added_tokens = { special(0), special(1), special(2), special(3) },
    normalizer = { type = "BertNormalizer", clean_text = true, handle_chinese_chars = true, strip_accents = json.null, lowercase = true },
    pre_tokenizer = { type = "BertPreTokenizer" },
    post_processor = { type = "TemplateProcessing", single = { piece("[CLS]", "SpecialToken"), piece("A", "Sequence"),
      piece("[SEP]", "SpecialToken") }, pair = json.array { piece("A", "Sequence"), piece("B", "Sequence") },
      special_tokens = { ["[CLS]"] = { id = "[CLS]", ids = { 2 }, tokens = { "[CLS]" } },
        ["[SEP]"] = { id = "[SEP]", ids = { 3 }, tokens = { "[SEP]" } } } },
    model = { type = "WordPiece", unk_token = "[UNK]", continuing_subword_prefix = "##", max_input_chars_per_word = 100, vocab = vocab } }
end

describe("labelled texts and embeddings", function()
  local folder, model, train, test
  local function write_rows(path, n, label)
    local lines = {}
    for i = 1, n do
      local good = i % 3 ~= 0
      lines[i] = json.encode { text = ("%s %s was %s"):format(words[11 + i % 2], words[7 + i % 3], good and "good" or "bad"),
        label = label(good) }
    end
    return support.write(path, table.concat(lines, "\n") .. "\n")
  end

  setup(function()
    folder = support.scratch()
    model = folder .. "/model"
    assert(system.mkdir_p(model))
    local config = { model_type = "bert", architectures = { "BertModel" }, vocab_size = #words, hidden_size = 32, intermediate_size = 64,
      num_hidden_layers = 2, num_attention_heads = 4, max_position_embeddings = 32 }
    local values = {}
    for _, stage in ipairs(assert(arch.describe(config)).stages) do
      for _, t in ipairs(stage.tensors) do
        local norm = #t.shape == 1 and not t.role:find "_bias$"
        values[t.name] = core.normal(tensors.new("f32", t.shape), 3, t.name, norm and 1 or 0, 0.2)
      end
    end
    assert(stores.write(model .. "/model.safetensors", values, { format = "pt" }))
    support.write(model .. "/config.json", json.encode(config))
    support.write(model .. "/tokenizer.json", json.encode(tokenizer()))
    train = write_rows(folder .. "/train.jsonl", 48, function(good) return good and "yes" or "no" end)
    test = write_rows(folder .. "/test.jsonl", 2, function() return "yes" end) -- one class alone
  end)
  teardown(support.scratch_remove)

  local function run(...)
    local status, out, err = support.run { ... }
    assert.equal(0, status, err)
    return out
  end

  it("are learnt by a new classifier beside an adapter, streamed or not, and measured by it", function()
    local files = {}
    for name, more in pairs { memory = {}, streamed = { "--slots", "2", "--micro-batch", "3" } } do
      local out = folder .. "/" .. name
      run("train", model, train, "--out", out, "--epochs", "24", "--lr", "0.01", "--threads", "1", unpack(more))
      files[#files + 1] = assert(system.hash_file(out .. "/adapter_model.safetensors"))
    end
    assert.equal(files[1], files[2])
    local config = json.decode(support.read(folder .. "/memory/adapter_config.json"))
    assert.equal("SEQ_CLS", config.task_type)
    assert.same({ "pooler", "classifier" }, config.modules_to_save)
    assert.same({ "no", "yes" }, json.decode(support.read(folder .. "/memory/labels.json")))
    local found = json.decode(run("evaluate", model, train, "--adapter", folder .. "/memory", "--json"))
    assert.equal(1, found.accuracy)
    assert.equal(48, found.samples)
    assert.is_true(found.loss < 0.2)
    found = json.decode(run("evaluate", model, test, "--adapter", folder .. "/memory", "--json"))
    assert.equal(1, found.accuracy)
  end)

  it("with a label that the classifier does not know are refused by it", function()
    local odd = write_rows(folder .. "/odd.jsonl", 3, function() return "maybe" end)
    local status, _, err = support.run { "evaluate", model, odd, "--adapter", folder .. "/memory" }
    assert.equal(1, status)
    assert.matches("odd.jsonl:1: label 'maybe' is none of the model's: no, yes", err, nil, true)
    status, _, err = support.run { "train", model, test, "--out", folder .. "/none" }
    assert.equal(1, status)
    assert.matches("only one label, 'yes'", err, nil, true)
  end)

  it("are embedded by the recipe as by the engine, whatever else is in the batch", function()
    local text = support.write(folder .. "/texts.txt", "a good film\nthe bad meal was bad\n\nsong\n")
    run("embed", model, text, "--output", folder .. "/vectors.safetensors", "--normalize", "--threads", "1")
    local vectors = stores.open(folder .. "/vectors.safetensors"):read "embeddings"
    assert.same({ 3, 32 }, vectors:shape())
    assert.is_true(math.abs(core.total(vectors:view { 96 }, true) - 3) < 1e-4)
    local engine = Engine.open(model, { threads = 1 })
    assert.same(vectors:totable()[2], engine:embed("the bad meal was bad", { normalize = true }):totable()[1])
    local first = engine:embed({ { 2, 11, 4, 6, 3 } }, { pooling = "cls" }):totable()
    assert.same(first, engine:embed({ "a good film" }, { pooling = "cls" }):totable())
    engine:close()
    local row = json.decode(run("embed", model, text, "--pooling", "max"):match "[^\n]+")
    assert.equal("a good film", row.text)
    assert.equal(32, #row.embedding)
  end)
end)
