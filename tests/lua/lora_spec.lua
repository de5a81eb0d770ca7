-- Adapters in PEFT's files, against what PEFT itself computes (fixtures/make_peft.py).
local batch = require "onn.batch"
local core = require "onn.core.ops"
local json = require "onn.core.json"
local lora = require "onn.nn.lora"
local Model = require "onn.model"
local program = require "onn.core.program"
local stores = require "onn.core.store"
local support = require "tests.support"

local fixtures = program.home .. "/tests/lua/fixtures/peft"

local function largest(t) return core.reduce(core.unary(t:to("f32"):contiguous():view { t:numel() }, "abs"), "max"):item() end
local function distance(a, b) return largest(core.binary(a, b:view(a:shape()), "sub")) / largest(a) end

describe("LoRA adapters", function()
  local model, expected, b, folder
  setup(function()
    folder = support.scratch()
    model = assert(Model.open(fixtures .. "/model"))
    assert.same({}, model.missing)
    assert(model:load())
    expected = assert(stores.open(fixtures .. "/expected.safetensors"))
    b = batch.from_ids(expected:read "input_ids")
  end)
  teardown(support.scratch_remove)

  local function logits() return model:forward(model:carry(b), {}).logits end

  it("begins without one at the reference's logits", function()
    assert.is_true(distance(expected:read "logits", logits()) <= 1e-4)
  end)

  for _, name in ipairs { "all", "two", "layers", "patterns", "rslora" } do
    it("reads PEFT's '" .. name .. "' and gives PEFT's logits", function()
      local adapter = assert(lora.load(model, fixtures .. "/" .. name))
      local want = expected:read("logits." .. name)
      assert.is_true(distance(want, logits()) <= 1e-4)
      assert.is_true(distance(want, expected:read "logits") > 1e-2) -- the adapter does something
      lora.remove(model, adapter)
    end)

    it("writes '" .. name .. "' again with the same keys, and reads that to the same bits", function()
      local adapter = assert(lora.load(model, fixtures .. "/" .. name))
      local before = logits():totable()
      assert(lora.save(model, adapter, folder .. "/" .. name))
      lora.remove(model, adapter)
      local theirs = assert(stores.open(fixtures .. "/" .. name .. "/adapter_model.safetensors"))
      local ours = assert(stores.open(folder .. "/" .. name .. "/adapter_model.safetensors"))
      assert.same(theirs:names(), ours:names())
      for _, key in ipairs(ours:names()) do assert.same(theirs:info(key).shape, ours:info(key).shape) end
      adapter = assert(lora.load(model, folder .. "/" .. name))
      assert.same(before, logits():totable())
      lora.remove(model, adapter)
      local config = json.decode(support.read(folder .. "/" .. name .. "/adapter_config.json"))
      local known = json.decode(support.read(fixtures .. "/" .. name .. "/adapter_config.json"))
      for key in pairs(config) do assert.is_not_nil(known[key], key) end
      for _, key in ipairs { "peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_dora" } do
        assert.same(known[key], config[key], key)
      end
    end)
  end

  it("names layers and targets as PEFT selects them", function()
    local function config_of(opt)
      opt.rank, opt.alpha, opt.targets = 2, 4, opt.targets or "all-linear"
      local adapter = assert(lora.create(model, opt))
      local config = lora.config(model, adapter)
      lora.remove(model, adapter)
      return config
    end
    local whole = config_of {}
    assert.equal(7, #whole.target_modules)
    assert.equal(json.null, whole.layers_to_transform)
    local part = config_of { targets = "q_proj,v_proj", layers = { [1] = true } }
    assert.same({ "q_proj", "v_proj" }, { unpack(part.target_modules) })
    assert.same({ 1 }, { unpack(part.layers_to_transform) })
    local uneven = config_of { targets = { "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj" } }
    assert.same({ "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj" }, { unpack(uneven.target_modules) })
    assert.equal(json.null, uneven.layers_to_transform)
  end)

  it("leaves the model as it is until B moves", function()
    local before = logits():totable()
    local adapter = assert(lora.create(model, { rank = 2, alpha = 4, targets = "all-linear" }))
    assert.same(before, logits():totable())
    lora.remove(model, adapter)
  end)

  it("refuses targets that are no layer, with the nearest one", function()
    local adapter, message = lora.create(model, { rank = 2, alpha = 4, targets = "q_prj" })
    assert.is_nil(adapter)
    assert.matches("'q_prj' is no linear layer of this model; did you mean 'q_proj'", message, 1, true)
  end)

  it("refuses by name what changes the result in other ways", function()
    local function refusal(changes)
      local path = folder .. "/refused"
      local config = json.decode(support.read(fixtures .. "/two/adapter_config.json"))
      for k, v in pairs(changes) do config[k] = v end
      os.execute("mkdir -p " .. path)
      support.write(path .. "/adapter_config.json", json.encode(config))
      support.write(path .. "/adapter_model.safetensors", support.read(fixtures .. "/two/adapter_model.safetensors"))
      local adapter, message = lora.load(model, path)
      assert.is_nil(adapter)
      return message
    end
    local _, message = lora.load(model, fixtures .. "/dora")
    assert.matches("use_dora is not supported", message)
    assert.matches("bias 'all' is not supported", refusal { bias = "all" })
    assert.matches("init_lora_weights 'pissa' is not supported", refusal { init_lora_weights = "pissa" })
    assert.matches("modules_to_save is not supported", refusal { modules_to_save = json.array { "lm_head" } })
    assert.matches("peft_type 'LOHA' is not supported", refusal { peft_type = "LOHA" })
    assert.matches("has rank 2, the config says 3", refusal { r = 3 })
    assert.matches("rank_pattern: .*pattern", refusal { rank_pattern = { ["q_proj("] = 2 } })
    assert.matches("several patterns with different values", refusal { rank_pattern = { q_proj = 2, [".*q_proj"] = 4 } })
    for _, item in ipairs(model:linear_layers()) do assert.is_nil(item.layer.adapter) end
  end)
end)
