local core = require "onn.core.ops"
local json = require "onn.core.json"
local program = require "onn.core.program"
local stores = require "onn.core.store"
local support = require "tests.support"
local system = require "onn.core.system"
local tiny = require "tests.tiny"

local fixtures = program.home .. "/tests/lua/fixtures/peft"

local function largest(t) return core.reduce(core.unary(t:to("f32"):contiguous():view { t:numel() }, "abs"), "max"):item() end

describe("onn merge", function()
  local folder, expected
  setup(function()
    folder = support.scratch()
    expected = stores.open(fixtures .. "/expected.safetensors")
  end)
  teardown(support.scratch_remove)

  -- How far the merged model's logits lie from PEFT's with the adapter, relative to the largest.
  local function off(model, name)
    local output = folder .. "/logits.safetensors"
    local status, _, err = support.run { "forward", model, "--input", fixtures .. "/expected.safetensors", "--output", output,
      "--dtype", "f32" }
    assert.equal(0, status, err)
    local want, got = expected:read("logits." .. name), stores.open(output):read "logits"
    return largest(core.binary(want, got:view(want:shape()), "sub")) / largest(want)
  end

  for _, name in ipairs { "all", "patterns", "rslora", "layers" } do
    it("folds '" .. name .. "' in, in f32, to the same logits", function()
      local out = folder .. "/" .. name
      local status, text, err = support.run { "merge", fixtures .. "/model", fixtures .. "/" .. name, out, "--storage", "f32" }
      assert.equal(0, status, err)
      assert.matches("merged +%d+ products", text)
      assert.is_nil(text:find "rounding")
      assert.is_true(off(out, name) <= 1e-4)
      assert.equal("float32", json.decode(support.read(out .. "/config.json")).dtype)
      assert.same(stores.open(fixtures .. "/model"):names(), stores.open(out):names())
    end)
  end

  it("says what rounding to bf16 costs", function()
    local out = folder .. "/bf16"
    local status, text, err = support.run { "merge", fixtures .. "/model", fixtures .. "/all", out, "--storage", "bf16", "--json" }
    assert.equal(0, status, err)
    local result = json.decode(text)
    assert.equal(14, result.merged)
    assert.is_true(result.rounding.largest > 0 and result.rounding.largest < 0.01)
    assert.is_true(result.rounding.relative > 0 and result.rounding.relative < 0.1)
    assert.equal("bfloat16", json.decode(support.read(out .. "/config.json")).dtype)
    assert.equal("BF16", stores.open(out):info("model.norm.weight").dtype)
    assert.is_true(off(out, "all") < 0.1)
    status, text = support.run { "merge", fixtures .. "/model", fixtures .. "/all", out, "--storage", "bf16", "--overwrite" }
    assert.equal(0, status)
    assert.matches("rounding", text)
  end)

  it("takes little memory, however large the model is: the same file", function()
    local wide = tiny.model(folder .. "/wide", { num_hidden_layers = 4, hidden_size = 256, intermediate_size = 512 })
    local status, _, err = support.run { "train", wide, tiny.data(folder .. "/rows.jsonl", 8), "--out", folder .. "/tuned", "--lr", "1e-2",
      "--rank", "2", "--steps", "2", "-q" }
    assert.equal(0, status, err)
    local hashes = {}
    for i, memory in ipairs { "1GB", "2MB" } do
      local out = ("%s/merged%d"):format(folder, i)
      status, _, err = support.run { "merge", wide, folder .. "/tuned", out, "--storage", "bf16", "--memory", memory }
      assert.equal(0, status, err)
      hashes[i] = system.hash_file(out .. "/model.safetensors")
    end
    assert.is_true(system.stat(wide .. "/model.safetensors").size > 8e6)
    assert.equal(hashes[1], hashes[2])
  end)

  it("leaves nothing where a merged weight is not finite", function()
    local adapter = folder .. "/infinite"
    os.execute(("cp -r %s/all %s"):format(fixtures, adapter))
    local store, values = stores.open(adapter .. "/adapter_model.safetensors"), {}
    for _, name in ipairs(store:names()) do values[name] = store:read(name) end
    local name = store:names()[2]
    values[name] = core.affine(values[name], 1 / 0, 0):clone()
    store:close()
    assert(stores.write(adapter .. "/adapter_model.safetensors", values, { format = "pt" }))
    local status, _, err = support.run { "merge", fixtures .. "/model", adapter, folder .. "/never" }
    assert.equal(1, status)
    assert.matches("the merged weight '[%w._]+' is not finite", err)
    assert.is_false(system.exists(folder .. "/never"))
  end)

  it("plans without writing", function()
    local out = folder .. "/planned"
    local status, text, err = support.run { "merge", fixtures .. "/model", fixtures .. "/all", out, "--dry-run", "--json" }
    assert.equal(0, status, err)
    local store, stored = stores.open(fixtures .. "/model"), 0
    for _, name in ipairs(store:names()) do stored = stored + store:info(name).bytes end
    local bytes = json.decode(text).weight_bytes
    assert.is_true(bytes >= stored and bytes < 1.1 * stored, bytes .. " of " .. stored)
    assert.matches("would fold", err)
    assert.is_false(system.exists(out))
  end)

  it("refuses in one line", function()
    local function refused(pattern, ...)
      local status, _, err = support.run { "merge", ... }
      assert.equal(1, status, err)
      assert.matches(pattern, err)
      assert.equal(1, select(2, err:gsub("\n", "")), err)
    end
    local none = folder .. "/none"
    refused("exists; %-%-overwrite replaces it", fixtures .. "/model", fixtures .. "/all", folder)
    refused("use_dora is not supported", fixtures .. "/model", fixtures .. "/dora", none)
    refused("nowhere", fixtures .. "/model", folder .. "/nowhere", none)
    local model = folder .. "/copy"
    os.execute(("cp -r %s/model %s"):format(fixtures, model))
    refused("is the model itself", model, fixtures .. "/all", model .. "/", "--overwrite")
    assert.is_false(system.exists(none))
  end)
end)
