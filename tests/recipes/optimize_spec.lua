local json = require "onn.core.json"
local support = require "tests.support"
local system = require "onn.core.system"
local tiny = require "tests.tiny"
local run = support.run

describe("onn optimize", function()
  local folder, model
  setup(function()
    folder = support.scratch()
    model = tiny.model(folder .. "/tiny")
  end)
  teardown(support.scratch_remove)

  it("writes what it found, and train uses it", function()
    local began = system.now()
    local status, out, err = run { "optimize", model, "--budget", "8s", "--batch", "4", "--seq-len", "32", "--json", "--report",
      folder .. "/search.html" }
    assert.equal(0, status, err)
    assert.is_true(system.now() - began < 30) -- the machine's profile is measured too where there is none
    local found = assert(json.decode(out))
    assert.same(found, assert(json.decode(support.read(model .. "/universal_config.json"))))
    for _, key in ipairs { "name", "total_params", "total_size_gb", "architecture_type", "num_layers", "hidden_sizes", "layer_groups" } do
      assert.is_not_nil(found.architecture[key], key)
    end
    for _, key in ipairs { "device_type", "device_name", "total_memory_gb", "available_memory_gb", "compute_units", "compute_capability",
      "memory_bandwidth_gbps", "host_to_device_bandwidth_gbps", "supports_fp16", "supports_bf16", "supports_int8" } do
      assert.is_not_nil(found.hardware[key], key)
    end
    for _, key in ipairs { "chunk_size", "batch_size", "use_pinned_memory", "use_memory_mapping", "gradient_checkpointing", "compute_dtype",
      "storage_dtype", "active_layers", "layer_selection_strategy", "layer_selection_ratio", "estimated_vram_mb",
      "estimated_time_per_sample_ms" } do
      assert.is_not_nil(found.config[key], key)
    end
    local c, s = found.config, found.search
    assert.same({ 4, 32, "f32" }, { c.batch_size, c.seq_len, c.compute_dtype }) -- tokens per update are not for sale
    assert.same({ 0, 1, 2 }, c.active_layers)
    local winners, reference = 0, nil
    for _, t in ipairs(s.trials) do
      if t.winner then winners = winners + 1 end
      if t.default then reference = t end
    end
    assert.equal(1, winners)
    assert.equal("ok", reference.outcome)
    for _, t in ipairs(s.trials) do
      if t.outcome == "ok" then assert.equal(reference.loss, t.loss) end
      if t.winner then assert.is_true(t.tokens_per_s >= reference.tokens_per_s) end
    end
    assert.is_true(#s.reasons >= 3 and #s.no_effect > 0)
    assert.is_true(s.scores.inputs.loss > 4)

    local page = support.read(folder .. "/search.html")
    assert.equal(2, select(2, page:gsub("<svg", "")))
    assert.is_nil(page:find "https?://")
    assert.is_nil(page:find "<script")

    local rows = tiny.data(folder .. "/rows.jsonl", 24)
    status, out, err = run { "train", model, "--dry-run", "--json", rows }
    assert.equal(0, status, err)
    assert.matches("settings .*universal_config.json: .*batch 4", err)
    if type(c.micro_batch) == "number" then assert.equal(c.micro_batch, json.decode(out).micro_batch) end
    status, out, err = run { "train", model, "--dry-run", "--json", rows, "--batch", "2" }
    assert.equal(0, status)
    assert.is_nil(err:find("batch 4", 1, true))
    assert.is_true(json.decode(out).micro_batch <= 2)
  end)

  it("shows a ranked table, with --out in a place of its own", function()
    local status, out, err = run { "optimize", model, "--budget", "3s", "--seq-len", "16", "--batch", "2", "--out", folder .. "/my.json" }
    assert.equal(0, status, err)
    assert.is_true(system.exists(folder .. "/my.json"))
    assert.matches("# +settings +tokens/s", out)
    assert.matches("%(default%)", out)
    assert.matches("of the limit, bound by", out)
    assert.matches("no effect:", out)
    assert.matches("equitable scores", out)
    assert.matches("search +%d+/%d+ trials", err)
  end)

  it("keeps what the user fixed", function()
    local status, out, err = run { "optimize", model, "--budget", "3s", "--seq-len", "16", "--batch", "4", "--micro-batch", "2",
      "--threads", "1", "--recompute", "on", "--out", folder .. "/fixed.json", "--json", "-q" }
    assert.equal(0, status, err)
    assert.equal("", err)
    local found = json.decode(out)
    assert.equal(1, #found.search.trials)
    assert.same({ 2, 1, true }, { found.config.micro_batch, found.config.threads, found.config.gradient_checkpointing })
  end)

  it("searches chunks and slots where the model is streamed", function()
    local wide = tiny.model(folder .. "/wide", { num_hidden_layers = 8, hidden_size = 256, intermediate_size = 512,
      tie_word_embeddings = false })
    local status, out, err = run { "optimize", wide, "--budget", "4s", "--seq-len", "16", "--batch", "4", "--rank", "2", "--threads", "1",
      "--micro-batch", "4", "--memory", "18MB", "--json", "-q" }
    assert.equal(0, status, err)
    local found = assert(json.decode(out))
    local chunks, n = {}, 0
    for _, t in ipairs(found.search.trials) do
      assert.is_true(t.outcome ~= "ok" or t.slots >= 2 and t.bytes_read > 0, t.outcome)
      if t.outcome == "ok" then chunks[t.chunk], n = true, n + 1 end
    end
    assert.is_true(chunks[1] and chunks[2] and n > 2)
    assert.is_true(found.config.chunk_size < 8)
    assert.equal(1, #found.search.no_effect)
    assert.is_true(found.search.roofline.disk_seconds > 0)
    status, out, err = run { "train", wide, tiny.data(folder .. "/some.jsonl", 8), "--dry-run", "--json", "--memory", "9MB", "--rank", "2" }
    assert.equal(0, status, err)
    assert.is_true(json.decode(out).chunk <= found.config.chunk_size)
  end)

  it("plans without writing", function()
    local other = tiny.model(folder .. "/other")
    local status, out = run { "optimize", other, "--dry-run", "--json" }
    assert.equal(0, status)
    assert.is_true(json.decode(out).peak > 0)
    assert.is_false(system.exists(other .. "/universal_config.json"))
  end)

  it("refuses in one line", function()
    local function refused(status, pattern, ...)
      local got, out, err = run { "optimize", ... }
      assert.equal(status, got, err)
      assert.equal("", out)
      assert.matches(pattern, err)
      assert.equal(1, select(2, err:gsub("\n", "")), err)
    end
    refused(1, "no such model", folder .. "/nowhere")
    refused(1, "^onn: [^:]*nowhere.safetensors", model, folder .. "/nowhere.safetensors", "-q")
    refused(1, "^onn: [^:]*nowhere.jsonl: No such file", model, folder .. "/nowhere.jsonl", "-q")
    local mute = tiny.model(folder .. "/mute")
    assert(os.remove(mute .. "/tokenizer.json"))
    refused(1, "^onn: [^:]*mute: there is no tokenizer.json", mute, tiny.data(folder .. "/data.jsonl", 4), "-q")
    refused(1, "^onn: /nowhere/x.json: No such file", model, "--budget", "3s", "--seq-len", "16", "--batch", "1", "--recompute", "off",
      "--threads", "1", "--out", "/nowhere/x.json", "-q")
    refused(2, "%-%-budget", model, "--budget", "soon")
    refused(1, "does not lie in 0%-2", model, "--layers", "7")
    refused(1, "memory budget", model, "--memory", "100KB", "--budget", "3s", "-q")
    local broken = tiny.model(folder .. "/broken")
    support.write(broken .. "/config.json", '{"model_type": "novel"}')
    refused(1, "'novel' is not known", broken)
    assert.equal(0, (run { "optimize", "--help" }))
  end)
end)

describe("onn.optimizer", function()
  teardown(support.scratch_remove)

  it("is a Lua API too", function()
    local Optimizer = require "onn.optimizer"
    local model = tiny.model(support.scratch() .. "/model")
    local optimizer = Optimizer.new(model, { batch = 2, seq_len = 16, threads = 1, recompute = "off" })
    local config = optimizer:find_optimal_config { budget = "3s" }
    assert.equal(model .. "/universal_config.json", optimizer:save_config(config))
    local result = optimizer:benchmark()
    assert.is_true(result.tokens_per_s > 0)
    assert.matches("equitable scores: efficiency", tostring(result))
    optimizer:close()
    assert.has_error(function() Optimizer.new(model, { bach = 2 }) end)
    assert.has_error(function() Optimizer.new(model .. "/nowhere") end)
  end)
end)
