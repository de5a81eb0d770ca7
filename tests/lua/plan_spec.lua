-- The plan of nets other than decoders: it bounds what is measured, fits the least budget that it names, and changes no bit.
local arch = require "onn.arch"
local batch = require "onn.batch"
local core = require "onn.core.ops"
local json = require "onn.core.json"
local measured = require "tests.measured"
local Model = require "onn.model"
local pictures = require "onn.plan.images"
local plan = require "onn.plan"
local stores = require "onn.core.store"
local support = require "tests.support"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"
require "onn.tensor"

local merged = support.merged

local folder, threads, made = nil, nil, {}
setup(function()
  folder, threads = support.scratch(), tensors.threads()
  tensors.set_threads(2)
end)
teardown(function()
  tensors.set_threads(threads)
  tensors.set_budget(2 ^ 40)
  support.scratch_remove()
end)

local small = { vocab_size = 300, hidden_size = 128, intermediate_size = 352, num_hidden_layers = 4, num_attention_heads = 4,
  max_position_embeddings = 256, pad_token_id = 1 }
local cell = { vocab_size = 300, embedding_size = 96, hidden_size = 128, num_layers = 3 }
local kinds = {
  bert = merged(small, { model_type = "bert", architectures = { "BertForMaskedLM" } }),
  bert_classes = merged(small, { model_type = "bert", architectures = { "BertForSequenceClassification" }, num_labels = 3 }),
  roberta = merged(small, { model_type = "roberta", architectures = { "RobertaForMaskedLM" } }),
  mpnet = merged(small, { model_type = "mpnet", architectures = { "MPNetForMaskedLM" } }),
  modernbert = merged(small, { model_type = "modernbert", architectures = { "ModernBertForSequenceClassification" }, num_labels = 3 }),
  t5 = { model_type = "t5", vocab_size = 300, d_model = 128, d_kv = 32, d_ff = 352, num_layers = 3, num_heads = 4, tie_word_embeddings = false },
  bart = { model_type = "bart", vocab_size = 300, d_model = 128, encoder_layers = 2, decoder_layers = 2, encoder_attention_heads = 4,
    decoder_attention_heads = 4, encoder_ffn_dim = 352, decoder_ffn_dim = 352, max_position_embeddings = 256 },
  lstm = merged(cell, { architecture = "lstm" }),
  gru_classes = merged(cell, { architecture = "gru", num_classes = 3, bidirectional = true }),
  mamba = { model_type = "mamba", vocab_size = 300, hidden_size = 128, num_hidden_layers = 3, state_size = 8 },
  resnet18 = { architecture = "resnet18", width = 16, num_classes = 5 },
  vit = { model_type = "vit", hidden_size = 64, num_hidden_layers = 3, num_attention_heads = 4, intermediate_size = 128, image_size = 64,
    patch_size = 8, num_labels = 5 },
}

local function open(kind, dtype)
  if not made[kind] then
    made[kind] = folder .. "/" .. kind
    assert(system.mkdir_p(made[kind]))
    local described, values = assert(arch.describe(kinds[kind])), {}
    for _, stage in ipairs(described.stages) do
      for _, t in ipairs(stage.tensors) do
        local w = core.normal(tensors.new("f32", t.shape), 3, t.name, t.name:find "running_var" and 1 or 0, t.name:find "running_var" and 0 or 0.05)
        values[t.name] = t.dtype and w:to(t.dtype) or w
      end
    end
    assert(stores.write(made[kind] .. "/model.safetensors", values, { format = "pt" }))
    support.write(made[kind] .. "/config.json", json.encode(kinds[kind]))
  end
  local model = assert(Model.open(made[kind], { dtype = dtype }))
  assert.same({}, model.missing)
  return model
end

local ROWS, LENGTH, SIDE = 8, 48, 64

-- The rows first + 1 .. first + count of what every update sees.
local function micro_of(model, first, count)
  local sizes = model.sizes
  if model.net.data == "images" then
    local labels, rows, starts = {}, {}, { 0 }
    for i = 1, count do labels[i], rows[i], starts[i + 1] = (first + i) % 5, first + i - 1, i end
    local x = core.normal(tensors.new("f32", { ROWS, 3, SIDE, SIDE }), 5, "x", 0, 1)
    return { x = x:narrow(1, first + 1, count):clone(), labels = tensors.from_table(labels, "i32"), rows = tensors.from_table(rows, "i64"),
      starts = tensors.from_table(starts, "i32"), tokens = count, supervised = count }
  end
  local ids, marks = {}, {}
  local classes = sizes.classes or sizes.top and sizes.top.kind == "classes"
  for r = first, first + count - 1 do
    local row, own = {}, {}
    for t = 1, LENGTH do row[t], own[t] = (r * 31 + t * 17) % 280 + 4, (r * 7 + t * 5) % 280 end
    ids[#ids + 1], marks[#marks + 1] = row, classes and r % 3 or own
  end
  ids, marks = tensors.from_table(ids, "i32"), tensors.from_table(marks, "i32")
  if not model.net.batch then return batch.from_ids(ids:to "i64") end
  return assert(model.net.batch(sizes, { input_ids = ids, decoder_input_ids = ids, labels = marks }))
end

local function measure(model, opt, p)
  local micros = {}
  for first = 0, ROWS - 1, p.micro_batch do micros[#micros + 1] = micro_of(model, first, math.min(p.micro_batch, ROWS - first)) end
  return measured.updates(model, opt, p, micros, folder)
end

local function planned(model, opt)
  if model.net.data ~= "images" then return plan.training(model, merged({ seq_len = LENGTH }, opt)) end
  return pictures.training(model, opt, { height = SIDE, width = SIDE, samples = ROWS })
end

describe("the plan of", function()
  for kind in pairs(kinds) do
    for _, dtype in ipairs(kinds[kind].architecture and { "f32" } or kind == "vit" and { "f32" } or { "f32", "bf16" }) do
      it(("%s, %s, bounds what adapters take, closely"):format(kind, dtype), function()
        local opt = { rank = 4, batch = ROWS, recompute = "auto" }
        local model = open(kind, dtype)
        local _, losses = measure(model, opt, planned(model, opt))
        model = open(kind, dtype)
        local least = planned(model, merged(opt, { budget = 1 }))
        model:close()
        assert.is_false(least.fits)
        local seen = {}
        for _, budget in ipairs { least.minimum, 1.1 * least.minimum, 1.5 * least.minimum, 3 * least.minimum } do
          model = open(kind, dtype)
          local how = merged(opt, { budget = math.ceil(budget) })
          local p = planned(model, how)
          assert.is_true(p.fits and p.peak <= how.budget)
          local what = ("%s: slots %s, tile %s, micro-batch %d, kept %d, together %d, carries %s"):format(kind, tostring(p.slots), tostring(p.tile),
            p.micro_batch, p.kept, p.together, tostring(p.carries.quota))
          if seen[what] then
            model:close()
          else
            seen[what] = true
            local peak, said = measure(model, how, p)
            what = ("%s; predicted %.3f MB, measured %.3f MB"):format(what, p.peak / 1e6, peak / 1e6)
            assert.equal(losses, said, what)
            assert.is_true(p.peak >= peak, what)
            assert.is_true(p.peak <= 1.3 * peak + 2 ^ 20, what)
          end
        end
      end)
    end
  end

  for _, kind in ipairs { "bert", "gru_classes", "vit" } do
    it(kind .. " streams where its weights do not fit", function()
      local model = open(kind, "f32")
      local least = planned(model, { rank = 4, batch = ROWS, recompute = "auto", budget = 1 })
      local p = planned(model, { rank = 4, batch = ROWS, recompute = "auto", budget = math.ceil(least.minimum) })
      assert.is_true(p.ring ~= nil and p.weights < plan.inference(model, { tokens = 64, seq_len = 64 }).weights)
      model:close()
    end)
  end

  it("running bounds what it takes", function()
    for _, kind in ipairs { "bert", "bert_classes", "modernbert", "t5", "lstm", "gru_classes", "mamba", "resnet18", "vit" } do
      local want
      for _, share in ipairs { 1, 1.3, 1000 } do
        local model = open(kind, "f32")
        local shape = model.net.data == "images"
        local function planned_for(budget)
          if shape then return pictures.inference(model, { batch = ROWS, budget = budget }, SIDE, SIDE) end
          return plan.inference(model, { tokens = ROWS * LENGTH, seq_len = LENGTH, rows = ROWS * LENGTH, budget = budget })
        end
        local p = planned_for(math.ceil(share * planned_for(1).minimum))
        assert.is_true(p.fits, kind)
        local b = micro_of(model, 0, ROWS)
        local inputs = 0
        for _, t in pairs(b) do if tensors.is_tensor(t) then inputs = inputs + t:bytes() end end
        collectgarbage()
        collectgarbage()
        local before = tensors.memory().used - inputs
        tensors.reset_peak()
        assert(model:load { ring = p.ring })
        local logits = model:forward(model:carry(b), {}).logits
        local peak, said = tensors.memory().peak - before, ("%a"):format((core.total(logits:contiguous(), true)))
        logits:free()
        batch.free(b)
        model:close()
        want = want or said
        local what = ("%s: slots %s, predicted %.3f MB, measured %.3f MB"):format(kind, tostring(p.slots), p.peak / 1e6, peak / 1e6)
        assert.equal(want, said, what)
        assert.is_true(p.peak >= peak, what)
        assert.is_true(p.peak <= 1.6 * peak + 2 ^ 20, what) -- a loss is counted, and logits beside it
      end
    end
  end)
end)
