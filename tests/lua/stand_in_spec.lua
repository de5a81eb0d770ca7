-- Models without a config.json: --family and --set against the golden results, and what is asked for where shapes do not tell.
local batch = require "onn.batch"
local core = require "onn.core.ops"
local json = require "onn.core.json"
local Model = require "onn.model"
local program = require "onn.core.program"
local stores = require "onn.core.store"
local support = require "tests.support"
local system = require "onn.core.system"

local golden = program.home .. "/../shared/golden"

local function largest(t) return core.reduce(core.unary(t:to("f32"):contiguous():view { t:numel() }, "abs"), "max"):item() end

-- What shapes do not tell and the families' defaults do not say, of each golden decoder.
local given = {
  llama = { "llama", { num_attention_heads = "4", max_position_embeddings = "64" } },
  llama_tied_bias = { "llama", { num_attention_heads = "4" } },
  llama3_rope = { "llama", { num_attention_heads = "4", max_position_embeddings = "64", rope_parameters = json.encode { factor = 8,
    high_freq_factor = 4, low_freq_factor = 1, original_max_position_embeddings = 16, rope_theta = 10000, rope_type = "llama3" } } },
  mistral = { "mistral", { num_attention_heads = "4", sliding_window = "8" } },
  qwen2 = { "qwen2", { num_attention_heads = "4" } },
  qwen3 = { "qwen3", {} },
  phi3 = { "phi3", { num_attention_heads = "4" } },
}

describe("a model without config.json", function()
  local folder
  setup(function() folder = support.scratch() end)
  teardown(support.scratch_remove)

  -- The golden store alone in a directory.
  local function bare(name)
    local path = folder .. "/" .. name
    assert(system.mkdir_p(path))
    support.write(path .. "/model.safetensors", support.read(golden .. "/" .. name .. "/model.safetensors"))
    return path
  end

  if not system.isdir(golden) then return pending(golden .. " is absent") end
  for name, how in pairs(given) do
    it(("of %s gives the reference's logits with --family %s"):format(name, how[1]), function()
      local path = bare(name)
      local model = assert(Model.open(path, { dtype = "f32", family = how[1], set = how[2] }))
      assert.same({}, model.missing)
      assert(model:load())
      local results = assert(stores.open(golden .. "/" .. name .. "/golden.safetensors"))
      local want = results:read "logits"
      local b = batch.from_ids(results:read "input_ids")
      local logits = model:forward(model:carry(b), {}).logits
      assert.is_true(largest(core.binary(want, logits:view(want:shape()), "sub")) <= 1e-4 * largest(want))
      model:close()
      results:close()
    end)
  end

  it("asks for what shapes do not tell, in one line", function()
    local status, out, err = support.run { "forward", bare "llama", "--family", "llama", "--input", "x", "--output", "y" }
    assert.same({ 1, "" }, { status, out })
    assert.matches("^onn: [^\n]*shapes do not tell 'num_attention_heads': give %-%-set num_attention_heads=[^\n]*\n$", err)
    local model = assert(Model.open(bare "llama", { family = "llama", set = { num_attention_heads = "5" } }))
    assert.is_true(#model.missing > 0)
    model:close()
    model = assert(Model.open(bare "bert", { family = "llama", set = { num_attention_heads = "4" } }))
    assert.is_true(#model.missing > 0)
    assert.is_true(#model:why_not() < 2000)
    model:close()
  end)

  it("says what it took from shapes and from the family", function()
    local status, out = support.run { "inspect", bare "llama", "--family", "llama", "--set", "num_attention_heads=4" }
    assert.equal(0, status)
    assert.matches("hidden_size=32 %(shapes%)", out)
    assert.matches("num_key_value_heads=2 %(shapes%)", out)
    assert.matches("rms_norm_eps=1e%-06 %(default%)", out)
    assert.matches("runnable +yes", out)
  end)

  it("without --family is analysed only", function()
    local model = assert(Model.open(bare "llama", { set = { num_attention_heads = "4" } }))
    assert.is_nil(model.stages)
    assert.matches("config.json", model:why_not())
    model:close()
  end)
end)

describe("--set", function()
  if not system.isdir(golden) then return pending(golden .. " is absent") end
  it("overrides a key of config.json, nested ones too", function()
    local path = golden .. "/llama"
    local model = assert(Model.open(path, { set = { rms_norm_eps = "0.5", hidden_act = "relu" } }))
    assert.same({}, model.missing)
    assert.equal(0.5, model.sizes.eps)
    model:close()
    model = assert(Model.open(path, { set = { num_attention_heads = "-1" } }))
    assert.matches("'num_attention_heads' should be a positive integer", model:why_not())
    model:close()
    model = assert(Model.open(path, { config = { model_type = "x", text_config = json.decode(support.read(path .. "/config.json")) },
      set = { rms_norm_eps = "0.25" } }))
    assert.equal(0.25, model.sizes.eps)
    model:close()
  end)
end)
