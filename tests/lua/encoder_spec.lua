-- Encoders: bits that do not depend on streaming or micro-batches, names that checkpoints give their tensors, what is refused.
local arch = require "onn.arch"
local batch = require "onn.batch"
local core = require "onn.core.ops"
local json = require "onn.core.json"
local lora = require "onn.nn.lora"
local Model = require "onn.model"
local optim = require "onn.optim"
local relative = require "onn.nn.relative"
local stores = require "onn.core.store"
local support = require "tests.support"
local sweep = require "onn.sweep"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"
require "onn.tensor"

local merged = support.merged

local folder, threads, made = nil, nil, 0
setup(function()
  folder, threads = support.scratch(), tensors.threads()
  tensors.set_threads(1)
end)
teardown(function()
  tensors.set_threads(threads)
  support.scratch_remove()
end)

local small = { vocab_size = 96, hidden_size = 32, intermediate_size = 48, num_hidden_layers = 4, num_attention_heads = 4,
  max_position_embeddings = 64, pad_token_id = 1 }
local kinds = {
  bert = merged(small, { model_type = "bert", architectures = { "BertForMaskedLM" } }),
  bert_classes = merged(small, { model_type = "bert", architectures = { "BertForSequenceClassification" }, num_labels = 3 }),
  roberta = merged(small, { model_type = "roberta", architectures = { "RobertaForMaskedLM" }, tie_word_embeddings = false }),
  electra = merged(small, { model_type = "electra", architectures = { "ElectraForTokenClassification" }, embedding_size = 16 }),
  mpnet = merged(small, { model_type = "mpnet", architectures = { "MPNetForMaskedLM" } }),
  modernbert = merged(small, { model_type = "modernbert", architectures = { "ModernBertForSequenceClassification" }, num_labels = 3,
    local_attention = 6 }),
}

local t5 = { model_type = "t5", vocab_size = 96, d_model = 32, d_kv = 8, d_ff = 48, num_layers = 2, num_heads = 4,
  feed_forward_proj = "gated-gelu", tie_word_embeddings = false, relative_attention_max_distance = 20, relative_attention_num_buckets = 8 }
local bart = { model_type = "bart", vocab_size = 96, d_model = 32, encoder_layers = 2, decoder_layers = 2, encoder_attention_heads = 4,
  decoder_attention_heads = 4, encoder_ffn_dim = 48, decoder_ffn_dim = 48, max_position_embeddings = 64 }
kinds.t5, kinds.bart, kinds.mbart = t5, bart, merged(bart, { model_type = "mbart", scale_embedding = true })

-- The directory of a random model; rename(name) -> another name for a tensor, or nil: it is left out.
local function model_of(config, rename)
  made = made + 1
  local path = ("%s/model%d"):format(folder, made)
  assert(system.mkdir_p(path))
  local values = {}
  for _, stage in ipairs(assert(arch.describe(config)).stages) do
    for _, t in ipairs(stage.tensors) do
      local norm = #t.shape == 1 and not t.role:find "_bias$"
      local w = core.normal(tensors.new("f32", t.shape), 3, t.name, norm and 1 or 0, 0.2)
      local name = t.name
      if rename then name = rename(name) end
      if name then values[name] = w end
    end
  end
  assert(stores.write(path .. "/model.safetensors", values, { format = "pt" }))
  support.write(path .. "/config.json", json.encode(config))
  return path
end

local function open(path, how)
  local model = assert(Model.open(path, { dtype = how.dtype or "f32" }))
  assert.same({}, model.missing)
  assert(model:load { ring = how.slots and { slots = how.slots, chunk = how.chunk } or nil })
  return model
end

-- Micro-batches of `micro` rows, of 4 in all, and how many labels count.
local function micros_of(model, micro)
  local list, supervised = {}, 0
  local top = model.sizes.top
  local classes = top and top.kind == "classes"
  for first = 0, 3, micro do
    local ids, labels = {}, {}
    for r = first, first + micro - 1 do
      local row, marks = {}, {}
      for t = 1, 13 do row[t], marks[t] = (r * 31 + t * 17) % 90 + 4, t % 3 == 1 and (r + t) % model.sizes.outputs or -100 end
      ids[#ids + 1], labels[#labels + 1] = row, classes and r % model.sizes.outputs or marks
    end
    local given = { input_ids = tensors.from_table(ids, "i32"), labels = tensors.from_table(labels, "i32") }
    if not top then -- more tokens are written than read
      given.decoder_input_ids, given.input_ids = given.input_ids, given.input_ids:narrow(2, 3, 7):contiguous()
    end
    local b = assert(model.net.batch(model.sizes, given))
    list[#list + 1], supervised = b, supervised + b.supervised
  end
  return list, supervised
end

-- Three updates of an adapter: losses and the adapter, as text.
local function trained(path, how)
  local model = open(path, how)
  local adapter = assert(lora.create(model, { rank = 4, alpha = 8, seed = 1, targets = "all-linear" }))
  local params, state, said = lora.parameters(adapter), optim.adamw.state(), {}
  for _ = 1, 3 do
    local micros, supervised = micros_of(model, how.micro or 2)
    said[#said + 1] = ("%a"):format(sweep.gradient(model, micros, { scale = 1 / supervised, recompute = how.recompute }))
    optim.fold(params)
    optim.adamw.step(params, state, {}, 1e-2, 1)
    optim.clear(params)
    for _, b in ipairs(micros) do batch.free(b) end
  end
  for _, p in ipairs(params) do said[#said + 1] = ("%a"):format((core.total(p.value, true))) end
  local text = table.concat(said, " ")
  assert.is_true(not how.slots or model:streamed() > 0)
  lora.remove(model, adapter)
  model:close()
  return text
end

local function hidden_of(path)
  local model = open(path, {})
  local ids = tensors.from_table({ { 5, 6, 7, 8 }, { 9, 10, 11, 12 } }, "i32")
  local carry = model:forward(model:carry(assert(model.net.batch(model.sizes, { input_ids = ids }))), { keep_hidden = true })
  local values = carry.last_hidden:totable()
  model:close()
  return values
end

describe("an encoder", function()
  for kind, config in pairs(kinds) do
    it(kind .. ": streamed, rebuilt and in any micro-batch it trains to the same bits", function()
      local path = model_of(config)
      for _, dtype in ipairs { "f32", "bf16" } do
        local want = trained(path, { dtype = dtype })
        for _, how in ipairs { { slots = 1 }, { slots = 2 }, { slots = 2, chunk = 2, recompute = true }, { micro = 1 }, { micro = 4, slots = 2 } } do
          assert.equal(want, trained(path, merged(how, { dtype = dtype })))
        end
      end
    end)
  end

  it("is read with or without its prefix, with the old names of norms, and without a head", function()
    local want = hidden_of(model_of(kinds.bert))
    local function bare(name) return not name:find "^cls" and name:gsub("^bert%.", "") or nil end
    assert.same(want, hidden_of(model_of(kinds.bert, function(name)
      return (name:gsub("LayerNorm%.weight$", "LayerNorm.gamma"):gsub("LayerNorm%.bias$", "LayerNorm.beta"))
    end)))
    local body = model_of(kinds.bert, bare)
    support.write(body .. "/config.json", json.encode(merged(kinds.bert, { architectures = { "BertModel" } })))
    assert.same(want, hidden_of(body))
    support.write(body .. "/config.json", json.encode(merged(kinds.bert, { architectures = json.null })))
    assert.same(want, hidden_of(body))
  end)

  it("without its head's tensors is refused by their names, or gets a new classifier where one is asked for", function()
    local body = model_of(kinds.bert, function(name) return not name:find "^cls" and name or nil end)
    local model = assert(Model.open(body))
    assert.matches("cls.predictions", model:why_not())
    model:close()
    model = assert(Model.open(body, { classes = { "no", "yes" }, seed = 4 }))
    assert.same({}, model.missing)
    assert.same({ [0] = "no", "yes" }, model.sizes.labels)
    assert(model:load())
    model:close()
  end)

  local function refused(changes, pattern, kind)
    local described, wrong = arch.describe(merged(kinds[kind or "bert"], changes))
    assert.is_nil(described)
    assert.matches(pattern, table.concat(wrong, "; "), nil, true)
  end

  it("is refused by name where the config asks for other arithmetic", function()
    refused({ position_embedding_type = "relative_key" }, "'position_embedding_type' is 'relative_key'")
    refused({ is_decoder = true }, "'is_decoder' is true")
    refused({ hidden_act = "mish" }, "'hidden_act' 'mish' is not known")
    refused({ architectures = { "BertForMultipleChoice" } }, "'BertForMultipleChoice'")
    refused({ num_attention_heads = 5 }, "'hidden_size' 32 is no multiple of 'num_attention_heads' 5")
    refused({ max_position_embeddings = 2 }, "leaves no place", "roberta")
    refused({ num_labels = "many" }, "'num_labels'", "bert_classes")
    refused({ id2label = { ["0"] = "a", ["2"] = "b" } }, "none for 1", "bert_classes")
    refused({ classifier_pooling = "mean" }, "'classifier_pooling' is 'mean'", "modernbert")
    refused({ local_attention = -4 }, "'local_attention'", "modernbert")
  end)

  it("refuses labels that do not fit its head", function()
    local sizes = arch.describe(kinds.bert_classes).sizes
    local net = require "onn.arch.encoder"
    local ids = tensors.from_table({ { 5, 6 }, { 7, 8 } }, "i32")
    local _, message = net.batch(sizes, { input_ids = ids, labels = tensors.from_table({ 0, 3 }, "i32") })
    assert.equal("label 3; the model has 0 to 2", message)
    _, message = net.batch(sizes, { input_ids = ids, labels = ids })
    assert.equal("labels are (2, 2), expected (2)", message)
  end)

  it("counts places from behind the padding's id, and gives it its own", function()
    local sizes = arch.describe(kinds.roberta).sizes
    local net = require "onn.arch.encoder"
    local b = assert(net.batch(sizes, { input_ids = tensors.from_table({ { 5, 1, 6 }, { 7, 8, 1 } }, "i32") }))
    assert.same({ 2, 1, 3, 2, 3, 1 }, net.start({ sizes = sizes, stages = { { weights = {} } } }, b).places:totable())
  end)
end)

-- Values of transformers' T5Attention._relative_position_bucket and MPNet's, which agree.
describe("a bucket of relative positions", function()
  it("is one's own for small distances and shared by steps beyond", function()
    local both, past = {}, {}
    for _, d in ipairs { -200, -128, -64, -20, -8, -1, 0, 1, 7, 8, 12, 100, 128 } do
      both[#both + 1], past[#past + 1] = relative.bucket(d, 32, 128, true), relative.bucket(d, 32, 128, false)
    end
    assert.same({ 15, 15, 14, 10, 8, 1, 0, 17, 23, 24, 25, 31, 31 }, both)
    assert.same({ 31, 31, 26, 17, 8, 1, 0, 0, 0, 0, 0, 0, 0 }, past)
  end)
end)
