-- The Lua API for scripts: engine and trainer, as people call them.
local json = require "onn.core.json"
local stores = require "onn.core.store"
local support = require "tests.support"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"
local tiny = require "tests.tiny"

describe("onn.engine", function()
  local Engine = require "onn.engine"
  local folder, path, engine, learned
  setup(function()
    folder = support.scratch()
    path = tiny.model(folder .. "/model")
    engine = Engine.open(path)
  end)
  teardown(function()
    engine:close()
    support.scratch_remove()
  end)

  it("learns rows and says them", function()
    local result = engine:train({ { input = "Hello", output = "World" } }, { epochs = 60, lr = 1e-2, schedule = "constant" })
    assert.equal(60, result.steps)
    assert.equal(60, #result.losses)
    assert.is_true(result.loss_last < result.loss_first - 0.5)
    learned = result.loss_last
    assert.equal(" World", engine:generate("Hello", { max_tokens = 50 }))
  end)

  it("streams the same text in pieces", function()
    local pieces = {}
    for piece in engine:stream("Hello", { max_tokens = 50 }) do pieces[#pieces + 1] = piece end
    assert.equal(" World", table.concat(pieces))
    assert.is_true(#pieces > 1)
  end)

  it("stops at a text, even one that spans pieces, and does not show it", function()
    assert.equal(" W", engine:generate("Hello", { max_tokens = 50, stop = "orl" }))
    assert.equal(" ", engine:generate("Hello", { max_tokens = 50, stop = { "rld", "W" } }))
    assert.equal(" World", engine:generate("Hello", { max_tokens = 50, stop = "World!" }))
  end)

  it("goes on from its adapter, or begins another", function()
    local on = engine:train({ { input = "Hello", output = "World" } }, { steps = 1, lr = 0 })
    assert.is_true(on.loss_first <= learned)
    local anew = engine:train({ { input = "Hello", output = "World" } },
      { steps = 1, lr = 0, rank = 2, layers = { 2 }, targets = "q_proj" })
    assert.is_true(anew.loss_first > learned + 0.5)
    assert.equal(1, #engine.adapter.modules)
    assert.equal("model.layers.2.self_attn.q_proj", engine.adapter.modules[1].name)
  end)

  it("leaves no scratch directory where training cannot begin", function()
    local made, real = nil, system.make_temp_dir
    function system.make_temp_dir()
      made = real()
      return made
    end
    local rows = { { input = "Hello", output = "World" } }
    for targets, message in pairs { q_proj = false, nothing = "^train: targets: 'nothing' is no linear layer" } do
      made = nil
      local ok, said = pcall(engine.train, engine, rows, { epochs = 2, lr = 0, layers = { 2 }, targets = targets })
      assert.same({ not message, false }, { ok, system.exists(made) })
      if message then assert.matches(message, said) end
    end
    system.make_temp_dir = real
  end)

  it("saves an adapter that another engine reads", function()
    engine:train({ { input = "Hello", output = "There" } }, { epochs = 40, lr = 1e-2, rank = 4 })
    engine:save_adapter(folder .. "/adapter")
    local other = Engine.open(path, { adapter = folder .. "/adapter", memory = "1GB", threads = 1 })
    assert.equal(" There", other:generate "Hello")
    other:close()
  end)

  it("trains from a file, whole rows or packed, and on all weights", function()
    local file = tiny.data(folder .. "/rows.jsonl", 20)
    local steps = {}
    local result = engine:train(file, { steps = 3, pack = "best-fit", seq_len = 64, on_step = function(r) steps[#steps + 1] = r.step end })
    assert.same({ 1, 2, 3 }, steps)
    assert.equal(3, result.steps)
    local other = Engine.open(path)
    local whole = other:train(file, { steps = 8, full = true, lr = 1e-2 })
    assert.is_true(whole.loss_last < whole.loss_first)
    other:close()
  end)

  it("names the nearest option for an unknown one", function()
    local function refused(pattern, f, ...) assert.error_matches(function(...) f(...) end, pattern, nil, nil, ...) end
    refused("unknown option 'memroy'; did you mean 'memory'?", function() Engine.open(path, { memroy = "1GB" }) end)
    refused("unknown option 'epoch'; did you mean 'epochs'?", function() engine:train({}, { epoch = 1 }) end)
    refused("unknown option 'max_token'; did you mean 'max_tokens'?", function() engine:generate("x", { max_token = 1 }) end)
    refused("unknown option 'temprature'; did you mean 'temperature'?", function() engine:stream("x", { temprature = 1 }) end)
    refused("layers: expected numbers from 0 to 2, found 3", function() engine:train({ { text = "a b" } }, { layers = { 0, 3 } }) end)
    refused("no such model", function() Engine.open(folder .. "/nowhere") end)
    refused("there are no rows", function() engine:train({}, {}) end)
  end)

  describe("with a model larger than its memory", function()
    local wide, rows, options = nil, {}, { epochs = 2, batch = 4, seq_len = 64, layers = { 13, 14, 15 }, lr = 1e-2 }
    setup(function()
      for i, row in ipairs(tiny.rows(8)) do rows[i] = { text = (row.prompt .. " " .. row.completion .. " "):rep(12) } end
      wide = tiny.model(folder .. "/wide", { num_hidden_layers = 16, hidden_size = 128, intermediate_size = 384 })
      assert(system.mkdir_p(folder .. "/scratch"))
    end)

    local function lives(memory, more)
      local one = Engine.open(wide, { memory = memory, threads = 1, scratch = more and more.scratch })
      local seen = { before = one.model.ring ~= nil }
      local result = one:train(rows, options)
      seen.losses, seen.streamed, seen.plan = result.losses, one.model.ring ~= nil, result.plan
      seen.text = one:generate("the red cat", { max_tokens = 12, temperature = 0 })
      seen.again = one:train(rows, { steps = 1, lr = 0, batch = 4, seq_len = 64 }).loss_first -- on from its adapter
      seen.peak = tensors.memory().peak
      one:close()
      return seen
    end

    it("streams it: the same losses and the same text, within the memory, and nothing stays in the scratch directory", function()
      local all = lives "1GB"
      collectgarbage() collectgarbage()
      tensors.reset_peak()
      local before = tensors.memory().used
      local small = lives(before + 13.5e6, { scratch = folder .. "/scratch" })
      assert.same({ false, false }, { all.before, all.streamed })
      assert.same({ true, true }, { small.before, small.streamed })
      assert.same(all.losses, small.losses)
      assert.equal(all.text, small.text)
      assert.equal(all.again, small.again)
      assert.is_true(small.plan.bytes_per_step > 0)
      assert.is_true(small.peak <= before + 13.5e6)
      assert.same({}, system.list(folder .. "/scratch"))
      collectgarbage() collectgarbage()
      assert.equal(before, tensors.memory().used)
    end)

    it("refuses what does not fit with the bytes that it needs", function()
      assert.error_matches(function() Engine.open(wide, { memory = 3e6 }) end, "a text of %d+ tokens needs at least [%d.]+ MB, the budget is 3.00 MB")
      local one = Engine.open(wide, { memory = 12e6, threads = 1 })
      assert.error_matches(function() one:train(rows, { full = true, seq_len = 32 }) end,
        "all weights rest in memory .- when they are trained: at least [%d.]+ MB, the budget is 12.0 MB")
      one:close()
    end)
  end)

  it("frees what it held", function()
    collectgarbage() collectgarbage()
    local before = tensors.memory().used
    local other = Engine.open(path)
    other:train({ { input = "Hello", output = "World" } }, { steps = 2 })
    other:generate("Hello", { max_tokens = 3 })
    other:close()
    collectgarbage() collectgarbage()
    assert.equal(before, tensors.memory().used)
  end)
end)

describe("onn.trainer", function()
  local folder, path
  setup(function()
    folder = support.scratch()
    path = tiny.model(folder .. "/model")
  end)
  teardown(support.scratch_remove)

  it("trains the layers it was made for, further at each call", function()
    local trainer = require("onn.trainer").new { model_path = path, chunk_size = 3, sparse_layers = { 0, 2 }, lora_rank = 4 }
    local rows = { { input = "Hello", output = "World" } }
    local first = trainer:train(rows, { epochs = 5, lr = 1e-2 })
    local second = trainer:train(rows, { epochs = 5, lr = 1e-2 })
    assert.is_true(second.loss_first < first.loss_first)
    trainer:save(folder .. "/adapter")
    trainer:close()
    local config = json.decode(support.read(folder .. "/adapter/adapter_config.json"))
    assert.equal(4, config.r)
    assert.same({ 0, 2 }, { unpack(config.layers_to_transform) })
    local store = assert(stores.open(folder .. "/adapter/adapter_model.safetensors"))
    assert.equal(2 * 7 * 2, #store:names())
    for _, name in ipairs(store:names()) do assert.is_nil(name:find "layers.1.") end
  end)

  it("names the nearest option for an unknown one", function()
    assert.error_matches(function() require("onn.trainer").new { model_path = path, sparse_layer = { 0 } } end,
      "unknown option 'sparse_layer'; did you mean 'sparse_layers'?")
    assert.error_matches(function() require("onn.trainer").new {} end, "model_path is needed")
  end)
end)
