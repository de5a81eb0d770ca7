local json = require "onn.core.json"
local stores = require "onn.core.store"
local support = require "tests.support"
local tensors = require "onn.core.tensor"
local tiny = require "tests.tiny"
local run = support.run

local golden = "../shared/golden"

describe("onn inspect", function()
  local folder, model
  setup(function()
    folder = support.scratch()
    model = tiny.model(folder .. "/tiny", { num_hidden_layers = 3 })
  end)
  teardown(support.scratch_remove)

  local function analysis(...)
    local status, out, err = run { "inspect", "--json", ... }
    assert.equal(0, status, err)
    return assert(json.decode(out))
  end

  it("gives the whole analysis as JSON", function()
    local a = analysis(model)
    local block = 2 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32
    assert.equal("llama", a.architecture)
    assert.equal("transformer", a.architecture_type)
    assert.equal(300 * 32 + 3 * block + 32, a.total_params)
    assert.equal(a.total_params * 4 / 1e9, a.total_size_gb)
    assert.equal(3, a.num_layers)
    assert.same({ 32 }, a.hidden_sizes)
    assert.same({ F32 = a.total_params }, a.dtypes)
    assert.is_true(a.runnable)
    assert.same({}, a.missing)
    assert.equal(5, #a.stages)
    local sum = 0
    for _, stage in ipairs(a.stages) do sum = sum + stage.parameters end
    assert.equal(a.total_params, sum)
    assert.same({ "model.layers.2", "block", 2, block }, { a.stages[4].name, a.stages[4].kind, a.stages[4].index, a.stages[4].parameters })
    assert.same({ 64, 32 }, a.stages[4].tensors[7].shape)
    assert.is_true(a.needs_bytes.generate_streamed < a.needs_bytes.generate and a.needs_bytes.train_streamed < a.needs_bytes.train)
    assert.equal(12, #a.layer_groups.attention)
  end)

  it("shows a table, alike stages in one line", function()
    local status, out = run { "inspect", model }
    assert.equal(0, status)
    assert.matches("model.layers.0 .. 2 +block +3", out)
    assert.matches("runnable +yes", out)
    assert.matches("in memory +generate from [%d.]+ [KM]B, train from [%d.]+ [KM]B", out)
    assert.matches("streamed +generate from [%d.]+ [KM]B, train from [%d.]+ [KM]B", out)
    status, out = run { "inspect", model, "--all" }
    assert.equal(0, status)
    assert.matches("model.layers.2 +block +1", out)
    assert.matches("model.layers.2.mlp.down_proj.weight", out)
  end)

  it("says exactly what is missing", function()
    local weights = support.read(model .. "/model.safetensors")
    os.execute("mkdir " .. folder .. "/bare")
    support.write(folder .. "/bare/model.safetensors", weights)
    local a = analysis(folder .. "/bare")
    assert.is_false(a.runnable)
    assert.equal(3, a.num_layers)
    assert.matches("config.json", a.missing[1])
    assert.matches("number of heads", a.missing[2])
    a = analysis(folder .. "/bare", "--family", "llama", "--set", "hidden_size=32", "--set", "intermediate_size=64", "--set",
      "num_hidden_layers=3", "--set", "num_attention_heads=4", "--set", "num_key_value_heads=2", "--set", "vocab_size=300", "--set",
      "tie_word_embeddings=true", "--set", "rope_theta=10000")
    assert.is_true(a.runnable, a.missing[1])
    local wrong = tiny.model(folder .. "/wrong")
    local config = support.read(wrong .. "/config.json"):gsub('"intermediate_size": *64', '"intermediate_size": 40')
    support.write(wrong .. "/config.json", config)
    a = analysis(wrong)
    assert.is_false(a.runnable)
    assert.equal(9, #a.missing)
    assert.matches("'model.layers.0.mlp.gate_proj.weight' has the shape %(64, 32%), expected %(40, 32%)", table.concat(a.missing, "\n"))
  end)

  it("analyses what it does not know", function()
    local other = folder .. "/other"
    os.execute("mkdir " .. other)
    local function zeros(...) return tensors.zeros("f32", { ... }) end
    assert(stores.write(other .. "/model.safetensors", { ["net.0.w.weight"] = zeros(4, 3), ["net.1.w.weight"] = zeros(4, 4),
      ["out.weight"] = zeros(2, 4) }, {}))
    support.write(other .. "/config.json", '{"model_type": "novel"}')
    local a = analysis(other)
    assert.same({ "novel", "mlp", 36, 2, false }, { a.architecture, a.architecture_type, a.total_params, a.num_layers, a.runnable })
    assert.matches("'novel' is not known", a.missing[1])
    local status, out = run { "inspect", other }
    assert.equal(0, status)
    assert.matches("runnable +no", out)
    assert.matches("'novel' is not known", out)
  end)

  it("knows the kinds of the golden models", function()
    if not require("onn.core.system").isdir(golden) then return pending("no ../shared/golden here") end
    for name, expected in pairs { resnet = { "cnn", 8, 69995 }, lstm = { "rnn", 2, 10472 }, bert = { "transformer", 2, 24080 },
      gpt2 = { "transformer", 2, 31104 }, mixtral = { "transformer", 2, 38304 }, mobilenet_v2 = { "cnn", 19, 49610 } } do
      local a = analysis(golden .. "/" .. name)
      assert.same(expected, { a.architecture_type, a.num_layers, a.total_params }, name)
      assert.is_true(a.runnable or #a.missing > 0, name)
    end
  end)

  it("refuses in one line", function()
    local function refused(status, pattern, ...)
      local got, out, err = run { "inspect", ... }
      assert.equal(status, got, err)
      assert.equal("", out)
      assert.matches(pattern, err)
      assert.equal(1, select(2, err:gsub("\n", "")), err)
    end
    refused(1, "no such model: '.*/tini'; did you mean '.*/tiny'", folder .. "/tini")
    refused(2, "MODEL")
    refused(1, "no family is called 'lama'; did you mean 'llama'", model, "--family", "lama")
    refused(2, "KEY=VALUE", model, "--set", "a")
    support.write(folder .. "/broken.safetensors", "nonsense")
    refused(1, "broken.safetensors", folder .. "/broken.safetensors")
    local status, out = run { "inspect", "--help" }
    assert.equal(0, status)
    assert.matches("example:", out)
  end)
end)
