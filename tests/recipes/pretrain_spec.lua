local json = require "onn.core.json"
local support = require "tests.support"
local system = require "onn.core.system"
local run, read, write = support.run, support.read, support.write

local config = '{"model_type":"llama","hidden_size":32,"intermediate_size":64,"num_hidden_layers":2,"num_attention_heads":2,'
  .. '"num_key_value_heads":1,"max_position_embeddings":64,"tie_word_embeddings":true}'

describe("onn pretrain", function()
  local folder, text
  setup(function()
    folder = support.scratch()
    local lines = {}
    for i = 1, 200 do lines[i] = json.encode { text = ("The %s cat sees %d birds."):format(i % 2 == 0 and "black" or "white", i % 5) } end
    text = write(folder .. "/cats.jsonl", table.concat(lines, "\n") .. "\n")
  end)
  teardown(support.scratch_remove)

  local function pretrain(out, ...)
    return run { "pretrain", config, text, "--out", folder .. "/" .. out, "--vocabulary", "300", "--seq-len", "32", "--batch", "4",
      "--steps", "25", "--lr", "0.01", "--quiet", ... }
  end

  it("writes a whole Hugging Face directory, and the loss falls", function()
    local status, _, err = pretrain("one", "--log", folder .. "/one.log")
    assert.equal(0, status, err)
    for _, name in ipairs { "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json" } do
      assert.is_true(system.exists(folder .. "/one/" .. name), name)
    end
    assert.is_false(system.exists(folder .. "/one.part"))
    local losses = {}
    for line in io.lines(folder .. "/one.log") do losses[#losses + 1] = json.decode(line).loss end
    assert.equal(25, #losses)
    assert.is_true(losses[25] < losses[1] - 1)
    local written = json.decode(read(folder .. "/one/config.json"))
    assert.equal(written.vocab_size, require("onn.tokenizer").open(folder .. "/one").size)
  end)

  it("writes down what the config left to defaults, and null for tokens that are not there", function()
    local written = json.decode(read(folder .. "/one/config.json"))
    assert.equal(1e-6, written.rms_norm_eps)
    assert.equal(16, written.head_dim)
    assert.equal(10000, written.rope_theta)
    assert.equal("silu", written.hidden_act)
    assert.equal(json.null, written.pad_token_id)
  end)

  it("gives the same bytes for the same seed, and others for another", function()
    assert.equal(0, (pretrain "again"))
    assert.equal(0, (pretrain("other", "--seed", "1")))
    for _, name in ipairs { "model.safetensors", "tokenizer.json", "config.json" } do
      assert.equal(system.hash_file(folder .. "/one/" .. name), system.hash_file(folder .. "/again/" .. name), name)
    end
    assert.not_equal(system.hash_file(folder .. "/one/model.safetensors"), system.hash_file(folder .. "/other/model.safetensors"))
  end)

  it("says in one line that a budget is below the new weights", function()
    local status, _, err = pretrain("small", "--memory", "50KB")
    assert.equal(1, status)
    assert.matches("^onn: the new model's weights alone are [%d.]+ KB, the budget is 50%.0 KB[^\n]*\n$", err)
    assert.is_false(system.exists(folder .. "/small"))
  end)

  it("writes what generate and train take", function()
    local status, out, err = run { "generate", folder .. "/one", "--prompt", "The black", "--temperature", "0", "--max-tokens", "8", "-q" }
    assert.equal(0, status, err)
    assert.matches("cat", out)
    status, out, err = run { "train", folder .. "/one", text, "--out", folder .. "/adapter", "--steps", "2", "--rank", "2", "-q" }
    assert.equal(0, status, out .. err)
    assert.is_true(system.exists(folder .. "/adapter/adapter_model.safetensors"))
  end)

  it("takes another model's tokenizer", function()
    local status, _, err = run { "pretrain", config, text, "--out", folder .. "/lent", "--tokenizer", folder .. "/one", "--steps", "1",
      "--seq-len", "32", "-q" }
    assert.equal(0, status, err)
    assert.equal(read(folder .. "/one/tokenizer.json"), read(folder .. "/lent/tokenizer.json"))
  end)

  it("plans without writing", function()
    local status, out = pretrain("planned", "--dry-run", "--json")
    assert.equal(0, status)
    assert.is_true(json.decode(out).peak > 0)
    assert.is_false(system.exists(folder .. "/planned"))
    assert.is_false(system.exists(folder .. "/planned.part"))
  end)

  it("plans no spilling, which its session does not do", function()
    local status, out, err = pretrain("tight", "--batch", "64", "--memory", "500KB", "--dry-run", "--json")
    assert.equal(0, status, err)
    local plans = json.decode(out)
    assert.is_false(plans.fits)
    assert.equal(0, plans.spill_written)
  end)

  it("refuses in one line and leaves nothing behind", function()
    local function refused(pattern, ...)
      local status, _, err = run { ... }
      assert.equal(1, status, err)
      assert.matches(pattern, err)
      local _, lines = err:gsub("\n", "")
      assert.equal(1, lines, err)
    end
    refused("exists; %-%-overwrite replaces it", "pretrain", config, text, "--out", folder .. "/one", "-q")
    refused("hidden_size", "pretrain", '{"model_type":"llama"}', text, "--out", folder .. "/x", "-q")
    refused("not known", "pretrain", '{"model_type":"lama"}', text, "--out", folder .. "/x", "-q")
    refused("nowhere", "pretrain", config, folder .. "/nowhere.jsonl", "--out", folder .. "/x", "-q")
    refused("nowhere", "pretrain", folder .. "/nowhere.json", text, "--out", folder .. "/x", "-q")
    assert.is_false(system.exists(folder .. "/x"))
    assert.is_false(system.exists(folder .. "/x.part"))
  end)
end)
