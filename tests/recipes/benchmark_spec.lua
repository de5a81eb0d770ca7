local json = require "onn.core.json"
local support = require "tests.support"
local tiny = require "tests.tiny"
local run = support.run

describe("onn benchmark", function()
  local model
  setup(function() model = tiny.model(support.scratch() .. "/tiny") end)
  teardown(support.scratch_remove)
  local short = { "--seq-len", "16", "--prompt-tokens", "16", "--new-tokens", "8", "--repeats", "2", "--steps", "2",
    "--threads", "1" } -- threads of tiny products wait for one another where other programs run
  local function bench(...)
    local words = { "benchmark", ... }
    for _, word in ipairs(short) do words[#words + 1] = word end
    return run(words)
  end

  it("gives a row for each combination, as JSON", function()
    local status, out, err = bench(model, "--batch", "1,4", "--chunk", "1,3", "-o", "json", "-q")
    assert.equal(0, status, err)
    assert.equal("", err)
    local rows = assert(json.decode(out))
    assert.equal(4, #rows)
    assert.same({ 1, 1, 4, 1, 1, 3, 4, 3 }, { rows[1].batch, rows[1].chunk, rows[2].batch, rows[2].chunk, rows[3].batch, rows[3].chunk,
      rows[4].batch, rows[4].chunk })
    for _, row in ipairs(rows) do
      assert.equal("ok", row.outcome)
      for _, key in ipairs { "prefill_tokens_per_s", "decode_tokens_per_s", "train_tokens_per_s", "mfu", "train_limit_share",
        "decode_limit_share", "peak_bytes", "loss", "processors_left" } do
        assert.is_true(row[key] > 0, key)
      end
      assert.same({ 2, 2, 2 }, { #row.train_samples, #row.decode_samples, #row.prefill_samples })
      assert.is_true(math.abs(row.score_efficiency - (1 - row.loss) / 37472 * 1e10) < 1)
      assert.matches("turns the sign", row.misleading[1])
    end
    assert.equal(rows[1].decode_tokens_per_s, rows[4].decode_tokens_per_s) -- measured once
  end)

  it("gives Markdown, CSV, and either half alone", function()
    local status, out, err = bench(model, "--batch", "2")
    assert.equal(0, status)
    assert.matches("^| batch | chunk |", out)
    assert.equal(3, select(2, out:gsub("\n", "")))
    assert.matches("misleading", err)
    status, out = bench(model, "--batch", "2", "-o", "csv", "--only", "train", "-q")
    assert.equal(0, status)
    assert.matches("^batch,chunk,", out)
    assert.is_nil(out:find "decode")
    status, out = bench(model, "--only", "generate", "--json", "-q")
    assert.equal(0, status)
    assert.is_nil(json.decode(out)[1].train_tokens_per_s)
  end)

  it("streams what is larger than the memory, by chunk, with the same losses", function()
    local wide = tiny.model(support.scratch() .. "/wide", { num_hidden_layers = 8, hidden_size = 256, intermediate_size = 512,
      tie_word_embeddings = false })
    local function rows_of(...)
      local status, out, err = bench(wide, "--batch", "4", "--rank", "2", "-o", "json", ...)
      assert.equal(0, status, err)
      return assert(json.decode(out)), err
    end
    local whole, note = rows_of("--chunk", "1,2")
    assert.matches("chunk had no effect", note)
    assert.same({ 0, 0 }, { whole[1].bytes_streamed, whole[2].bytes_streamed })
    local rows
    rows, note = rows_of("--chunk", "1,2,4", "--memory", "15MB")
    assert.is_nil(note:find("no effect", 1, true))
    for i, row in ipairs(rows) do
      assert.equal("ok", row.outcome)
      assert.equal(({ 1, 2, 4 })[i], row.chunk)
      assert.is_true(row.chunk_used <= row.chunk and row.slots >= 2 and row.bytes_streamed > 5e6 and row.decode_bytes_streamed > 1e6)
      assert.is_true(row.train_limit_share > 0 and row.train_limit_share < 1.5)
      assert.is_true(row.bound == "disk" or row.bound == "compute")
      assert.is_true(row.peak_bytes <= 15e6)
      assert.equal(whole[1].loss, row.loss)
    end
    assert.same({ 1, 2 }, { rows[1].chunk_used, rows[2].chunk_used })
    assert.is_true(rows[2].slots <= rows[1].slots)
    local status, out = bench(wide, "--batch", "4", "--rank", "2", "--memory", "15MB", "--dry-run", "--json", "-q")
    assert.equal(0, status)
    assert.is_true(json.decode(out)[1].bytes_streamed > 5e6)
  end)

  it("says what did not fit and goes on", function()
    local status, out, err = run { "benchmark", model, "--batch", "1,64", "--micro-batch", "64", "--only", "train", "--seq-len", "64",
      "--steps", "1", "--recompute", "off", "--memory", "24MB", "--threads", "1",
      "--json", "-q" }
    assert.equal(0, status, err)
    local rows = json.decode(out)
    assert.equal("ok", rows[1].outcome)
    assert.equal("oom_device", rows[2].outcome)
    assert.is_nil(rows[2].train_tokens_per_s)
  end)

  it("plans without running", function()
    local status, out = bench(model, "--dry-run", "--json", "-q")
    assert.equal(0, status)
    local row = json.decode(out)[1]
    assert.is_true(row.predicted_peak_bytes > 0 and row.train_limit_tokens_per_s > 0 and row.decode_limit_tokens_per_s > 0)
    assert.is_nil(row.train_tokens_per_s)
    status, out = run { "benchmark", "--workload", "seed", "--dry-run", "--json", "-q", "--batch", "1" }
    assert.equal(0, status)
    row = json.decode(out)
    assert.is_true(math.abs(row.gflop_per_sample - 349) < 2)
  end)

  it("refuses in one line", function()
    local function refused(status, pattern, ...)
      local got, out, err = run { "benchmark", ... }
      assert.equal(status, got, err)
      assert.equal("", out)
      assert.matches(pattern, err)
      assert.equal(1, select(2, err:gsub("\n", "")), err)
    end
    refused(1, "no such model", model .. "/nowhere")
    refused(2, "%-%-batch", model, "--batch", "1,x")
    refused(2, "%-o: expected one of", model, "-o", "xml")
    refused(2, "has 128 positions", model, "--seq-len", "129")
    refused(2, "leave MODEL out", model, "--workload", "seed")
    refused(2, "a number from 1 to 40", "--workload", "seed", "--layers", "first:4")
    refused(1, "the budget is 1.00 GB: take fewer", "--workload", "seed", "--memory", "1GB", "-q")
    assert.equal(0, (run { "benchmark", "--help" }))
  end)
end)
