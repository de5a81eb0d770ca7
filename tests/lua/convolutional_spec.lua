-- Convolutional nets: every family builds, a new net's directory is read back as the same stages, what does not fit is named; training with
-- running statistics, adapters on convolutions, and the same bits through a ring.
local arch = require "onn.arch"
local changes = require "onn.changes"
local fresh = require "onn.fresh"
local hash = require "onn.core.hash"
local images = require "onn.data.images"
local json = require "onn.core.json"
local lora = require "onn.nn.lora"
local merge = require "onn.merge"
local Model = require "onn.model"
local Session = require "onn.session"
local store = require "onn.store"
local support = require "tests.support"
local core = require "onn.core.ops"
local tensors = require "onn.core.tensor"

local folder
setup(function() folder = support.scratch() end)
teardown(support.scratch_remove)

-- A directory of a new, narrow ResNet-18 of five classes.
local function new_model(name)
  local path = folder .. "/" .. name
  assert(os.execute("mkdir -p " .. path) == 0)
  assert(fresh.weights(path, { architecture = "resnet18", width = 4, num_classes = 5 }, 1))
  return path
end

local function data()
  local path = folder .. "/data.safetensors"
  local labels = {}
  for i = 1, 12 do labels[i] = i % 5 end
  assert(store.write(path, { x = core.normal(tensors.new("f32", { 12, 3, 32, 32 }), 3, "data", 0, 1), y = tensors.from_table(labels, "i32") }))
  return path
end

local function open(path, ring)
  local model = assert(Model.open(path))
  assert.same({}, model.missing)
  assert(model:load { ring = ring })
  return model
end

-- Parameters of torchvision's nets of 1000 classes, as its documentation lists them.
local counted = { resnet18 = 11689512, resnet34 = 21797672, resnet50 = 25557032, resnet101 = 44549160, resnet152 = 60192808,
  resnext50_32x4d = 25028904, resnext101_32x8d = 88791336, resnext101_64x4d = 83455272, wide_resnet50_2 = 68883240,
  wide_resnet101_2 = 126886696, vgg11 = 132863336, vgg11_bn = 132868840, vgg13 = 133047848, vgg16 = 138357544, vgg16_bn = 138365992,
  vgg19 = 143667240, vgg19_bn = 143678248, mobilenet_v2 = 3504872, mobilenet_v3_small = 2542856, mobilenet_v3_large = 5483032,
  efficientnet_b0 = 5288548, efficientnet_b1 = 7794184, efficientnet_b2 = 9109994, efficientnet_b3 = 12233232,
  efficientnet_b4 = 19341616, efficientnet_b5 = 30389784, efficientnet_b6 = 43040704, efficientnet_b7 = 66347960,
  efficientnet_v2_s = 21458488, efficientnet_v2_m = 54139356, efficientnet_v2_l = 118515272, densenet121 = 7978856,
  densenet161 = 28681000, densenet169 = 14149480, densenet201 = 20013928, convnext_tiny = 28589128, convnext_small = 50223688,
  convnext_base = 88591464, convnext_large = 197767336, vit_b_16 = 86567656, vit_b_32 = 88224232, vit_l_16 = 304326632,
  vit_l_32 = 306535400, vit_h_14 = 632045800 }

describe("a new net", function()
  for name, want in pairs(counted) do
    it(name .. " has its published number of parameters", function()
      local described = assert(arch.describe { architecture = name })
      local total = 0
      for _, stage in ipairs(described.stages) do
        for _, t in ipairs(stage.tensors) do
          local n = t.state and 0 or 1
          for _, size in ipairs(t.shape) do n = n * size end
          total = total + n
        end
      end
      assert.equal(want, total)
    end)
  end

  it("is read back as it was written, sizes from the tensors", function()
    local path = new_model "read"
    local model = open(path)
    assert.same({ 8, 5, 3 }, { model.sizes.layers, model.sizes.classes, model.sizes.channels })
    model:close()
    support.write(path .. "/config.json", '{"architecture": "resnet18"}')
    open(path):close()
    support.write(path .. "/config.json", '{"architecture": "resnet18", "num_classes": 7}')
    assert.matches("'num_classes' is 7, the store's last layer gives 5", Model.open(path):why_not())
    support.write(path .. "/config.json", '{"architecture": "resnet34"}')
    assert.matches("tensor 'layer1.2.conv1.weight' is missing", Model.open(path):why_not())
    support.write(path .. "/config.json", '{"architecture": "resnet18", "num_classes": "many", "dropout": 2}')
    assert.matches("num_classes", Model.open(path):why_not())
  end)

  it("of patches says once what of its config is wrong", function()
    local config = { model_type = "vit", hidden_size = 30, num_hidden_layers = 3, num_attention_heads = 4, intermediate_size = 8 }
    local described, wrong = arch.describe(config)
    assert.is_nil(described)
    assert.same({ "config.json: 'hidden_size' 30 is no multiple of 'num_attention_heads' 4" }, wrong)
    config.hidden_size, config.num_attention_heads, config.hidden_act = nil, "4", "swish9"
    assert.equal(3, #select(2, arch.describe(config)))
    described, wrong = arch.describe { model_type = "dinov2", hidden_size = 32, num_hidden_layers = 1, num_attention_heads = 4, use_swiglu_ffn = true }
    assert.is_nil(described)
    assert.matches("use_swiglu_ffn", wrong[1])
  end)

  it("of wrong shapes is refused by name", function()
    local path = new_model "wrong"
    local source, values = assert(store.open(path .. "/model.safetensors")), {}
    for _, name in ipairs(source:names()) do values[name] = source:read(name) end
    source:close()
    local function with(name, value)
      local changed = {}
      for k, v in pairs(values) do changed[k] = v end
      changed[name] = value
      assert(store.write(path .. "/model.safetensors", changed))
      return Model.open(path):why_not()
    end
    assert.matches("'layer2.0.conv1.weight' has the shape", with("layer2.0.conv1.weight", tensors.zeros("f32", { 8, 3, 3, 3 })))
    assert.matches("'conv1.weight' has a window of 5 x 5, expected 7 x 7", with("conv1.weight", tensors.zeros("f32", { 4, 3, 5, 5 })))
    assert.matches("'bn1.running_var' has the shape", with("bn1.running_var", tensors.zeros("f32", { 3 })))
    assert.matches("'bn1.num_batches_tracked' is F32, expected I64", with("bn1.num_batches_tracked", tensors.zeros("f32", {})))
    assert.matches("'fc.weight' has the shape", with("fc.weight", tensors.zeros("f32", { 5, 31 })))
    assert.matches("'layer1.1': 5 channels are added to 4", with("layer1.1.conv2.weight", tensors.zeros("f32", { 5, 4, 3, 3 })))
    assert.matches("'extra' is not expected", with("extra", tensors.zeros("f32", { 1 })))
  end)
end)

describe("training a convolutional net", function()
  -- Trains `steps` updates of 6 images; returns what is saved, as a hash of each tensor, and the losses.
  local function train(path, options, ring, out)
    local model = open(path, ring)
    options.total_steps, options.lr = 4, 0.01
    local session = assert(Session.new(model, options))
    session:watch()
    local set, losses = assert(images.open(data(), model)), {}
    for epoch = 0, 1 do
      for update in images.batches(set, { batch = 6, micro_batch = options.micro_batch, seed = 1, epoch = epoch }) do
        losses[#losses + 1] = session:update(update, epoch).loss
      end
    end
    assert(session:verify())
    assert(session:save(out))
    session:close()
    model:close()
    local saved = assert(store.open(out .. (options.full and "/model.safetensors" or "/adapter_model.safetensors")))
    local hashes = {}
    for _, name in ipairs(saved:names()) do hashes[name] = hash.data(saved:read(name)) end
    saved:close()
    return hashes, losses
  end

  it("moves and saves running statistics, the same bits with tapes rebuilt and whatever the threads", function()
    local path = new_model "full"
    local before = assert(store.open(path .. "/model.safetensors"))
    local reference, losses = train(path, { full = true }, nil, folder .. "/full1")
    assert.is_true(losses[4] < losses[1])
    local after = assert(store.open(folder .. "/full1/model.safetensors"))
    assert.equal(4, after:read("bn1.num_batches_tracked"):item())
    assert.not_equal(hash.data(before:read "bn1.running_mean"), hash.data(after:read "bn1.running_mean"))
    tensors.set_threads(3)
    assert.same(reference, (train(path, { full = true, recompute = true }, nil, folder .. "/full2")))
    tensors.set_threads(1)
    assert.same(reference, (train(path, { full = true }, nil, folder .. "/full3")))
  end)

  it("of some layers leaves the others and their statistics as they are", function()
    local path = new_model "some"
    train(path, { full = true, layers = { [1] = true } }, nil, folder .. "/some1")
    local before, after = assert(store.open(path .. "/model.safetensors")), assert(store.open(folder .. "/some1/model.safetensors"))
    for _, name in ipairs(before:names()) do
      local same = hash.data(before:read(name)) == hash.data(after:read(name))
      assert.equal(not name:find "^layer1%.1%.", same, name)
    end
  end)

  it("with adapters freezes the statistics; streamed, in any chunk, it gives the same bits", function()
    local path = new_model "lora"
    local reference = train(path, { rank = 2, dropout = 0.1 }, nil, folder .. "/lora1")
    assert.is_string(reference["base_model.model.layer2.0.downsample.0.lora_A.weight"])
    assert.is_string(reference["base_model.model.fc.lora_B.weight"])
    for i, ring in ipairs { { slots = 1 }, { slots = 2 }, { slots = 3, chunk = 2 } } do
      tensors.set_threads(i)
      assert.same(reference, (train(path, { rank = 2, dropout = 0.1, recompute = i == 2, micro_batch = i }, ring, folder .. "/lora2")))
    end
    tensors.set_threads(1)
  end)

  it("merges adapters on convolutions into the same logits", function()
    local path = new_model "merge"
    train(path, { rank = 2, alpha = 64 }, nil, folder .. "/merge1")
    assert(merge.run { model = path, adapter = folder .. "/merge1", out = folder .. "/merged", storage = "stored" })
    local x = { x = core.normal(tensors.new("f32", { 2, 3, 32, 32 }), 3, "x", 0, 1) }
    local function logits(model) return model:forward(model:carry(x), {}).logits end
    local one, two, three = open(path), open(path), open(folder .. "/merged")
    assert(lora.load(two, folder .. "/merge1"))
    local base, adapted, merged = logits(one), logits(two), logits(three)
    local function far(a, b) return math.sqrt((core.total(core.binary(a, b, "sub"), true))) end
    assert.is_true(far(base, adapted) > 1e-3)
    assert.is_true(far(adapted, merged) < 1e-4 * far(base, adapted) + 1e-5)
    local config = json.decode(support.read(folder .. "/merge1/adapter_config.json"))
    assert.equal(21, #config.target_modules) -- every convolution and the last layer
    assert.equal(json.null, config.task_type)
  end)

  it("wants a rank that a convolution's groups divide", function()
    local path = folder .. "/mobile"
    assert(os.execute("mkdir -p " .. path) == 0)
    assert(fresh.weights(path, { architecture = "mobilenet_v3_small", num_classes = 2 }, 1))
    local model = open(path)
    assert.matches("has 16 groups", select(2, lora.create(model, { rank = 4, alpha = 8, targets = "features.1.block.0.0" })))
    local adapter = assert(lora.create(model, { rank = 4, alpha = 8, targets = "all-linear" }))
    for _, one in ipairs(adapter.modules) do assert.not_equal("features.1.block.0.0", one.name) end
    lora.remove(model, adapter)
    assert.is_table(changes.record(model, {}))
    model:close()
  end)
end)
