-- What must not change a training run's numbers, bit by bit: threads, rebuilt activations, micro-batches, memory budget. And what the
-- plan promises about memory, compared with what is measured.
local batch = require "onn.batch"
local data = require "onn.data"
local Model = require "onn.model"
local plan = require "onn.plan"
local Session = require "onn.session"
local support = require "tests.support"
local sweep = require "onn.sweep"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"
local tiny = require "tests.tiny"
local Tokenizer = require "onn.tokenizer"

local folder, threads
local models, runs = {}, 0

setup(function()
  folder, threads = support.scratch(), tensors.threads()
  models.llama = tiny.model(folder .. "/llama")
  models.qwen3 = tiny.model(folder .. "/qwen3", { model_type = "qwen3", head_dim = 16, tie_word_embeddings = false })
end)
teardown(function()
  tensors.set_threads(threads)
  support.scratch_remove()
end)

local function batches(path, order)
  local tokenizer = assert(Tokenizer.open(path))
  return assert(data.open(tiny.rows(64), tokenizer, { seq_len = 24, pack = order.pack })), order
end

-- Trains `change.updates` (4) updates; returns the losses and gradient norms as text, and the hash of what was trained.
local function train(path, change)
  tensors.set_threads(change.threads or 1)
  local model = assert(Model.open(path, { dtype = change.dtype or "f32" }))
  assert(model:load())
  local session = assert(Session.new(model, { rank = 4, alpha = 8, dropout = change.dropout or 0.1, lr = 0.01, total_steps = 4, seed = 3,
    recompute = change.recompute or false, full = change.full, layers = change.layers }))
  local set, order = batches(path, { batch = 4, micro_batch = change.micro_batch or 4, seq_len = 24, pack = change.pack, seed = 3,
    epoch = 0 })
  local said = {}
  for update in data.batches(set, order) do
    local r = session:update(update, 0)
    for _, b in ipairs(update) do batch.free(b) end
    said[#said + 1] = ("%a %a"):format(r.loss, r.grad_norm)
    if session.step == 4 then break end
  end
  runs = runs + 1
  local directory = ("%s/out%d"):format(folder, runs)
  assert(system.mkdir_p(directory))
  assert(session:save(directory))
  session:close()
  model:close()
  return table.concat(said, "; "), system.hash_file(directory .. "/adapter_model.safetensors") or system.hash_file(directory
    .. "/model.safetensors")
end

describe("a training run's numbers", function()
  local function same(name, path, base, changes)
    it("are the same: " .. name, function()
      local losses, hash = train(models[path], base)
      assert.equal(4, select(2, losses:gsub(" ", "")) - 3)
      for _, change in ipairs(changes) do
        local whole = {}
        for k, v in pairs(base) do whole[k] = v end
        for k, v in pairs(change) do whole[k] = v end
        local other, adapter = train(models[path], whole)
        local what = ("threads %s, micro-batch %s, recompute %s"):format(change.threads or 1, change.micro_batch or 4,
          tostring(change.recompute))
        assert.equal(losses, other, what)
        assert.equal(hash, adapter, what)
      end
    end)
  end
  local every = { { threads = 2 }, { threads = 3 }, { micro_batch = 1 }, { micro_batch = 2 }, { micro_batch = 3 }, { recompute = true },
    { threads = 3, micro_batch = 1, recompute = true } }
  same("llama, f32", "llama", {}, every)
  same("llama, bf16", "llama", { dtype = "bf16" }, every)
  same("llama, packed", "llama", { pack = "best-fit" }, every)
  same("llama, a stream, no dropout", "llama", { pack = "stream", dropout = 0 }, every)
  same("llama, some layers", "llama", { layers = { [1] = true } }, every)
  same("qwen3, untied", "qwen3", {}, every)
  same("all weights", "llama", { full = true }, every)
  same("all weights, bf16", "qwen3", { full = true, dtype = "bf16" }, every)

  it("differ for another seed of the data, so that the comparison means something", function()
    local one = train(models.llama, {})
    local other = train(models.llama, { pack = "best-fit" })
    assert.not_equal(one, other)
  end)

  it("packed or not: the same loss", function()
    local model = assert(Model.open(models.llama, { dtype = "f32" }))
    assert(model:load())
    local tokenizer = assert(Tokenizer.open(models.llama))
    local set = assert(data.open(tiny.rows(24), tokenizer, { seq_len = 24 }))
    local plain, tokens = data.loss(model, set, { batch = 4, seq_len = 24 })
    for _, pack in ipairs { "best-fit" } do
      local packed, count = data.loss(model, set, { batch = 2, seq_len = 24, pack = pack })
      assert.equal(tokens, count)
      assert.is_true(math.abs(packed - plain) <= 1e-7 * plain)
    end
    model:close()
  end)

  it("of a gradient are the same in one piece or accumulated", function()
    local model = assert(Model.open(models.llama, { dtype = "f32" }))
    assert(model:load())
    local session = assert(Session.new(model, { rank = 4, dropout = 0.1, total_steps = 4, seed = 3 }))
    for _, p in ipairs(session.params) do if p.name:find "B$" then p.value:fill(0.125) end end -- B = 0 would hide A's gradient
    local want
    for _, micro in ipairs { 4, 2, 1 } do
      local set, order = batches(models.llama, { batch = 4, micro_batch = micro, seq_len = 24, seed = 3, epoch = 0 })
      local update, supervised = data.batches(set, order)(), 0
      for _, b in ipairs(update) do supervised = supervised + b.supervised end
      sweep.gradient(model, update, { scale = 1 / supervised, seed = 3, epoch = 0 })
      local got = {}
      for i, p in ipairs(session.params) do
        got[i] = p.gradients[1]:totable()
        p.gradients[1]:fill(0)
      end
      want = want or got
      assert.same(want, got)
      for _, b in ipairs(update) do batch.free(b) end
    end
    session:close()
    model:close()
  end)
end)

describe("a memory budget", function()
  it("met in the middle of an update is an error after which nothing is lost", function()
    tensors.set_threads(1)
    local function session_of()
      local model = assert(Model.open(models.llama, { dtype = "f32" }))
      assert(model:load())
      model.angles:upto(24) -- made once, when first needed
      return model, assert(Session.new(model, { rank = 4, dropout = 0, lr = 0.01, total_steps = 4, seed = 3 }))
    end
    local function first(session, hurt)
      local set, order = batches(models.llama, { batch = 4, seq_len = 24, seed = 3, epoch = 0 })
      local update = data.batches(set, order)()
      if hurt then
        for share = 1, 9 do
          collectgarbage()
          local memory = tensors.memory()
          tensors.set_budget(memory.used + share * 30000)
          local ok, message = pcall(session.update, session, update, 0)
          tensors.set_budget(2 ^ 40)
          assert.is_false(ok, "budget was not met")
          assert.matches("memory budget: %d+ bytes asked, %d+ of %d+ in use", tostring(message))
          collectgarbage()
          assert.equal(memory.used, tensors.memory().used)
        end
      end
      return ("%a %a"):format(session:update(update, 0).loss, session:update(update, 0).loss)
    end
    local model, session = session_of()
    local want = first(session, false)
    session:close()
    model:close()
    model, session = session_of()
    assert.equal(want, first(session, true))
    session:close()
    model:close()
  end)
end)

describe("the plan's peak", function()
  local config = { hidden_size = 128, intermediate_size = 352, num_hidden_layers = 4, num_attention_heads = 4, num_key_value_heads = 2,
    vocab_size = 2000, max_position_embeddings = 512 }
  local cases = {
    { "f32", {}, { micro_batch = 4, seq_len = 64 } },
    { "long", {}, { micro_batch = 1, seq_len = 512 } },
    { "rebuilt", {}, { micro_batch = 4, seq_len = 128, recompute = "on" } },
    { "bf16", { num_hidden_layers = 8 }, { micro_batch = 8, seq_len = 64, dtype = "bf16" } },
    { "bf16 rebuilt", {}, { micro_batch = 8, seq_len = 128, dtype = "bf16", recompute = "on" } },
    { "large vocabulary", { vocab_size = 16000 }, { micro_batch = 1, seq_len = 64, dtype = "bf16" } },
    { "dropout", {}, { micro_batch = 4, seq_len = 128, dropout = 0.1 } },
    { "last layer", {}, { micro_batch = 4, seq_len = 128, layers = { [3] = true } } },
    { "first layer", {}, { micro_batch = 4, seq_len = 128, layers = { [0] = true } } },
    { "rank 64", {}, { micro_batch = 2, seq_len = 64, rank = 64, dtype = "bf16" } },
    { "all weights", {}, { micro_batch = 4, seq_len = 64, full = true } },
    { "all weights, bf16", { tie_word_embeddings = false }, { micro_batch = 4, seq_len = 64, full = true, dtype = "bf16" } },
    { "qwen3", { model_type = "qwen3", head_dim = 64 }, { micro_batch = 4, seq_len = 64, dtype = "bf16" } },
    { "phi3", { model_type = "phi3", tie_word_embeddings = false }, { micro_batch = 4, seq_len = 64 } },
  }

  -- Two updates on `micro_batch` full rows: the device's bytes at the largest moment, and what the plan said.
  local function measure(changes, opt)
    local whole = { seed = 1 }
    for k, v in pairs(config) do whole[k] = v end
    for k, v in pairs(changes) do whole[k] = v end
    runs = runs + 1
    local model = assert(Model.open(tiny.model(("%s/plan%d"):format(folder, runs), whole), { dtype = opt.dtype or "f32" }))
    opt.rank, opt.batch, opt.total_steps, opt.recompute = opt.rank or 8, opt.micro_batch, 4, opt.recompute or "off"
    local predicted = plan.training(model, opt)
    opt.sweep = predicted.sweep
    local ids = {}
    for r = 1, opt.micro_batch do
      ids[r] = {}
      for t = 1, opt.seq_len do ids[r][t] = (r * 7 + t * 13) % model.sizes.vocabulary end
    end
    collectgarbage()
    collectgarbage()
    local before = tensors.memory().used
    tensors.reset_peak()
    local b = batch.from_ids(tensors.from_table(ids, "i64"))
    assert(model:load())
    local session = assert(Session.new(model, opt))
    for _ = 1, 2 do session:update({ b }, 0) end
    local peak = tensors.memory().peak - before
    batch.free(b)
    session:close()
    model:close()
    return peak, predicted.peak
  end

  for _, case in ipairs(cases) do
    it("bounds what is measured, closely: " .. case[1], function()
      tensors.set_threads(2)
      local peak, predicted = measure(case[2], case[3])
      assert.is_true(predicted >= peak, ("predicted %.3f MB, measured %.3f MB"):format(predicted / 1e6, peak / 1e6))
      assert.is_true(predicted <= 1.2 * peak, ("predicted %.3f MB, measured %.3f MB"):format(predicted / 1e6, peak / 1e6))
    end)
  end
end)
