local support = require "tests.support"
local tiny = require "tests.tiny"
local trial = require "onn.trial"

describe("onn.trial", function()
  local model
  setup(function() model = tiny.model(support.scratch() .. "/model") end)
  teardown(support.scratch_remove)

  local function run(changes, timeout)
    local spec = { model = model, dtype = "f32", batch = 4, seq_len = 16, micro_batch = 2, recompute = "off", threads = 1, rank = 2,
      layers = "all", seed = 0, memory = 1e9, steps = 3, limit = 10 }
    for key, value in pairs(changes or {}) do spec[key] = value end
    return trial.run(spec, timeout or 60)
  end

  it("gives the figures of real updates", function()
    local r = run()
    assert.equal("ok", r.outcome, r.message)
    assert.same({ 3, 3, 3 }, { #r.rates, #r.seconds, #r.tokens })
    assert.equal(64, r.tokens[1])
    assert.is_true(math.abs(r.rates[1] * r.seconds[1] - 64) < 1e-6)
    assert.is_true(r.peak > 4e4)
    assert.is_true(r.wall > r.seconds[1] + r.seconds[2] + r.seconds[3])
  end)

  it("learns the same under all settings", function()
    local loss = run().loss
    assert.is_true(loss > 5.5 and loss < 6) -- of random tokens of 300
    for _, changes in ipairs { { micro_batch = 4 }, { micro_batch = 1 }, { recompute = "on" }, { threads = 2 } } do
      assert.equal(loss, run(changes).loss)
    end
    assert.is_true(run({ recompute = "on", batch = 8, micro_batch = 8, seq_len = 64 }).peak
      < run({ batch = 8, micro_batch = 8, seq_len = 64 }).peak)
  end)

  it("stops at its limit after one update at least", function()
    local r = run { steps = 100000, limit = 0 }
    assert.equal("ok", r.outcome)
    assert.equal(1, #r.rates)
  end)

  it("takes data, and goes through it again when it ends", function()
    local tensors, stores = require "onn.core.tensor", require "onn.core.store"
    local data = support.scratch() .. "/ids.safetensors"
    assert(stores.write(data, { input_ids = tensors.from_table({ { 5, 6, 7, 8 }, { 9, 10, 11, 12 } }, "i64") }, {}))
    local r = run { data = data, batch = 2, steps = 4 }
    assert.equal("ok", r.outcome, r.message)
    assert.same({ 8, 8, 8, 8 }, r.tokens)
  end)

  it("streams a model that its memory does not hold: the same loss", function()
    local wide = tiny.model(support.scratch() .. "/wide", { num_hidden_layers = 8, hidden_size = 256, intermediate_size = 512,
      tie_word_embeddings = false })
    local whole = run { model = wide, recompute = "auto", micro_batch = 4 }
    assert.equal("ok", whole.outcome, whole.message)
    assert.equal(0, whole.bytes_read)
    for _, changes in ipairs { {}, { chunk = 2 }, { slots = 2, recompute = "on" }, { rates = { product = 1e11, pass = 1e10, copy = 1e10, disk = 1e9, write = 1e9 } } } do
      changes.model, changes.memory, changes.micro_batch, changes.recompute = wide, 15e6, 4, changes.recompute or "auto"
      local r = run(changes)
      assert.equal("ok", r.outcome, r.message)
      assert.equal(whole.loss, r.loss)
      assert.is_true(r.bytes_read > 5e6 and r.peak <= 15e6)
    end
  end)

  it("tells apart what can go wrong", function()
    assert.equal("oom_device", run({ memory = 1e5 }).outcome)
    local r = run({ steps = 1e6, limit = 1e6 }, 1)
    assert.equal("timeout", r.outcome)
    assert.is_true(r.wall < 10)
    r = run { model = model .. "/nowhere" }
    assert.equal("failed", r.outcome)
    assert.matches("no such model", r.message)
  end)

  it("sees numbers that are not finite", function()
    local core, stores, tensors = require "onn.core.ops", require "onn.core.store", require "onn.core.tensor"
    local broken = tiny.model(support.scratch() .. "/broken")
    local store, values = assert(stores.open(broken)), {}
    for _, name in ipairs(store:names()) do values[name] = store:read(name) end
    values["model.norm.weight"] = core.affine(values["model.norm.weight"], 0 / 0, 0):clone()
    store:close()
    assert(stores.write(broken .. "/model.safetensors", values, { format = "pt" }))
    assert.equal("nan", run({ model = broken }).outcome)
    assert.is_true(tensors.memory().used >= 0)
  end)
end)
