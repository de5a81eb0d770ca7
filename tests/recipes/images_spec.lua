-- Image nets by the command line: made, trained, evaluated, adapted, stopped and resumed; what does not fit is said in one line.
local json = require "onn.core.json"
local program = require "onn.core.program"
local store = require "onn.store"
local support = require "tests.support"

local folder, shapes, net
local config = '{"architecture": "resnet18", "width": 4}'

local function run(words)
  local status, out, err = support.run(words)
  return status, out, err
end

local function check(words)
  local status, out, err = run(words)
  assert.equal(0, status, err)
  return out, err
end

setup(function()
  folder = support.scratch()
  shapes, net = folder .. "/shapes.safetensors", folder .. "/net"
  check { program.home .. "/recipes/demo/shapes.lua", shapes, "--count", "300", "--size", "16", "--noise", "20" }
  check { "pretrain", config, shapes, "--out", net, "--batch", "30", "--epochs", "2", "--lr", "0.003", "--quiet" }
end)
teardown(support.scratch_remove)

describe("image nets", function()
  it("made from a config take classes, size and normalisation from the data, and learn", function()
    local made = json.decode(support.read(net .. "/config.json"))
    assert.same({ 10, 16 }, { made.num_classes, made.image_size })
    local before = folder .. "/untrained"
    check { "pretrain", config, shapes, "--out", before, "--batch", "30", "--steps", "1", "--lr", "0", "--quiet" }
    local untrained = json.decode(check { "evaluate", before, shapes, "--json" })
    local trained = json.decode(check { "evaluate", net, shapes, "--json", "--batch", "50" })
    assert.equal(300, trained.samples)
    assert.is_true(trained.loss < untrained.loss - 0.2)
    assert.is_true(trained.accuracy > untrained.accuracy)
    assert.matches("accuracy +%d+%.%d+ %%", (check { "evaluate", net, shapes }))
  end)

  it("stopped and resumed give the bits of a run that was not, running statistics among them", function()
    local function train(out, ...)
      check { "train", net, shapes, "--full", "--optimizer", "sgd", "--momentum", "0.9", "--lr", "0.01", "--batch", "50", "--steps", "4", "--out",
        out, "--quiet", ... }
    end
    train(folder .. "/whole")
    train(folder .. "/parts", "--save-every", "2", "--threads", "1", "--keep", "3")
    os.execute(("rm -f %s/parts/model.safetensors"):format(folder))
    train(folder .. "/parts", "--resume", folder .. "/parts/checkpoint-2")
    assert.equal(support.read(folder .. "/whole/model.safetensors"), support.read(folder .. "/parts/model.safetensors"))
    check { "train", folder .. "/whole", shapes, "--rank", "2", "--steps", "1", "--out", folder .. "/adapter", "--quiet" } -- it is read back
  end)

  it("streamed give an adapter's bits, which merge folds in", function()
    for i, extra in ipairs { { "--threads", "1" }, { "--slots", "2" }, { "--slots", "3", "--chunk", "2", "--recompute", "on" } } do
      local words = { "train", net, shapes, "--rank", "2", "--batch", "50", "--steps", "3", "--out", folder .. "/a" .. i, "--quiet" }
      for _, word in ipairs(extra) do words[#words + 1] = word end
      check(words)
      assert.equal(support.read(folder .. "/a1/adapter_model.safetensors"), support.read(folder .. "/a" .. i .. "/adapter_model.safetensors"))
    end
    check { "merge", net, folder .. "/a1", folder .. "/merged" }
    local one = json.decode(check { "evaluate", net, shapes, "--adapter", folder .. "/a1", "--json" })
    local two = json.decode(check { "evaluate", folder .. "/merged", shapes, "--json" })
    assert.near(one.loss, two.loss, 1e-5)
  end)

  it("forward writes both modes, gradients and what the statistics become", function()
    local source = assert(store.open(shapes))
    local x = source:read("x", "f32"):narrow(1, 1, 4):contiguous()
    local input, output = folder .. "/in.safetensors", folder .. "/out.safetensors"
    assert(store.write(input, { x = x, labels = source:read("y"):narrow(1, 1, 4):contiguous() }))
    check { "forward", net, "--input", input, "--output", output, "--full", "--gradients", "--train-mode" }
    local written = assert(store.open(output))
    assert.same({ 4, 10 }, written:read("logits.train"):shape())
    for _, name in ipairs { "logits", "loss", "grad.conv1.weight", "after.bn1.running_mean", "after.layer4.1.bn2.num_batches_tracked" } do
      assert.is_table(written:info(name), name)
    end
    assert.is_nil(written:info "grad.bn1.running_mean")
  end)

  it("may be made of patches, whose number is fixed", function()
    local vit, larger = folder .. "/vit", folder .. "/larger.safetensors"
    check { "pretrain", '{"model_type":"vit","hidden_size":16,"num_hidden_layers":2,"num_attention_heads":2,"intermediate_size":32,"patch_size":4,'
      .. '"image_size":16}', shapes, "--out", vit, "--batch", "50", "--epochs", "2", "--lr", "0.003", "--quiet" }
    check { "train", vit, shapes, "--out", folder .. "/vit-adapter", "--steps", "2", "--rank", "2", "--quiet" }
    assert.matches("accuracy", (check { "evaluate", vit, shapes, "--adapter", folder .. "/vit-adapter", "--slots", "2" }))
    check { program.home .. "/recipes/demo/shapes.lua", larger, "--count", "4", "--size", "24" }
    local status, _, err = run { "evaluate", vit, larger }
    assert.equal(1, status)
    assert.matches("is for 16 patches, the images have 36", err)
    assert.is_nil(err:find "traceback")
  end)

  it("say in one line what does not fit", function()
    local function refused(pattern, words)
      local status, _, err = run(words)
      assert.is_true(status == 1 or status == 2, err)
      assert.matches(pattern, err)
      assert.equal(1, select(2, err:gsub("onn: ", "")), err)
    end
    refused("%-%-seq%-len: this model takes images", { "train", net, shapes, "--seq-len", "5" })
    refused("%-%-micro%-batch: with %-%-full", { "train", net, shapes, "--full", "--micro-batch", "2", "--out", folder .. "/no" })
    refused("takes images, not tokens", { "generate", net, "--prompt", "a" })
    refused("a folder for each class", { "evaluate", net, folder .. "/net" })
    refused("computed in f32 alone", { "evaluate", net, shapes, "--dtype", "bf16" })
    refused("needs at least", { "evaluate", net, shapes, "--memory", "1MB" })
    assert.matches("on images", (check { "inspect", net }))
  end)
end)
