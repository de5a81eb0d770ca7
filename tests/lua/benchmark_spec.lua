local benchmark = require "onn.benchmark"
local Model = require "onn.model"
local scores = require "onn.scores"
local seed_workload = require "onn.seed_workload"
local stores = require "onn.core.store"
local support = require "tests.support"
local tiny = require "tests.tiny"

describe("onn.benchmark", function()
  teardown(support.scratch_remove)

  it("combines lists, the last changing fastest", function()
    local rows = benchmark.product { { "a", { 1, 2 } }, { "b", { "x", "y" } } }
    local texts = {}
    for i, row in ipairs(rows) do texts[i] = row.a .. row.b end
    assert.same({ "1x", "1y", "2x", "2y" }, texts)
  end)

  it("writes Markdown and CSV", function()
    local rows = { { a = 1, b = 0.123456789, c = true }, { a = 12345, c = 'say "x", y' } }
    assert.equal('| a | b | c |\n|---|---|---|\n| 1 | 0.1235 | yes |\n| 12345 |  | say "x", y |',
      benchmark.markdown(rows, { "a", "b", "c" }))
    assert.equal('a,b,c\n1,0.123456789,yes\n12345,,"say ""x"", y"', benchmark.csv(rows, { "a", "b", "c" }))
  end)

  it("counts the original's workload and the true model", function()
    assert.is_true(math.abs(seed_workload.flops_per_sample(8) / 1e9 - 349) < 2) -- the original's 348 GFLOP, and the adapters
    assert.equal(8 * seed_workload.flops_per_sample(1), seed_workload.flops_per_sample(8))
    local whole = seed_workload.true_model()
    assert.equal(14659507200, whole.parameters)
    -- forward through everything and back to layer 0: two products per weight but the input embedding's
    local products = 14659507200 - 100352 * 5120
    assert.is_true(math.abs(whole.flops_per_sample / (32 * 4 * products) - 1) < 0.01)
  end)

  it("limits decoding by the weights that a token reads, as they are kept", function()
    local p = { memory = { { bytes = 1, read = 1e9 } }, products = { { dtype = "f32", flops = 1e9 }, { dtype = "bf16", flops = 1e9 } } }
    local path = tiny.model(support.scratch() .. "/untied", { tie_word_embeddings = false })
    local matrices = 300 * 32 + 3 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32) -- the head and the blocks; the embedding is not read
    local function read(dtype)
      local model = assert(Model.open(path, { dtype = dtype }))
      local _, decode = benchmark.inference_limits(model, p, 16)
      model:close()
      return 1e9 / decode
    end
    local function near(expected, got) assert.is_true(math.abs(got / expected - 1) < 0.03, got .. " for " .. expected) end
    near(4 * matrices + 7 * 32 * 4, read "f32")
    near(2 * matrices + 7 * 32 * 4, read "bf16")
    local store, values = assert(stores.open(path)), {}
    for _, name in ipairs(store:names()) do values[name] = store:read(name):to "bf16":clone() end
    store:close()
    assert(stores.write(path .. "/model.safetensors", values, { format = "pt" }))
    near(2 * matrices + 7 * 32 * 4, read "f32") -- f32 arithmetic keeps matrices as they are stored
  end)

  it("keeps the equitable scores and says where they mislead", function()
    local s = scores.equitable { loss = 0.5, num_parameters = 1e9, samples_per_second = 2, batch_size = 1, available_memory = 4e9,
      peak_memory = 1e9 }
    assert.same({ 5, 200, 400, 605 / 3 }, { s.efficiency, s.speed, s.memory, s.overall })
    assert.same({}, s.misleading)
    s = scores.equitable { loss = 2, num_parameters = 1e6, samples_per_second = 2, batch_size = 8, available_memory = 1e12,
      peak_memory = 1e6 }
    assert.equal(3, #s.misleading)
  end)
end)
