local discover = require "onn.discover"

-- A store's answers from {name = shape}; what is not said is F32.
local function stages_of(shapes)
  local names = {}
  for name in pairs(shapes) do names[#names + 1] = name end
  table.sort(names)
  return discover.stages(names, function(name) return { shape = shapes[name], dtype = "F32", bytes = 4 } end)
end

local function summary(stages)
  local list = {}
  for i, stage in ipairs(stages) do list[i] = ("%s %s %d"):format(stage.name, stage.kind, #stage.tensors) end
  return list
end

describe("onn.discover", function()
  it("finds the stack of a transformer, with more than nine layers in order", function()
    local shapes = { ["x.embed.weight"] = { 50, 8 }, ["final_ln.weight"] = { 8 }, ["out.weight"] = { 50, 8 } }
    for layer = 0, 11 do
      shapes[("x.block.%d.attn.q.weight"):format(layer)] = { 8, 8 }
      shapes[("x.block.%d.mlp.up.weight"):format(layer)] = { 16, 8 }
    end
    local stages = stages_of(shapes)
    assert.equal(14, #stages)
    assert.same({ "x.embed", "x.block.0", "x.block.10", "x.block.11" },
      { stages[1].name, stages[2].name, stages[12].name, stages[13].name })
    assert.same({ "stem", "block", "head" }, { stages[1].kind, stages[2].kind, stages[14].kind })
    assert.equal(11, stages[13].index)
    assert.equal("transformer", discover.type(stages))
    assert.same({ 8 }, discover.widths(stages))
  end)

  it("cuts a residual network into its blocks", function()
    local stages = stages_of { ["conv1.weight"] = { 4, 3, 7, 7 }, ["bn1.weight"] = { 4 }, ["layer1.0.conv1.weight"] = { 4, 4, 3, 3 },
      ["layer1.1.conv1.weight"] = { 4, 4, 3, 3 }, ["layer2.0.conv1.weight"] = { 8, 4, 3, 3 },
      ["layer2.0.downsample.0.weight"] = { 8, 4, 1, 1 }, ["fc.weight"] = { 10, 8 }, ["fc.bias"] = { 10 } }
    assert.same({ "bn1 stem 2", "layer1.0 convolution 1", "layer1.1 convolution 1", "layer2.0 convolution 2", "fc head 2" },
      summary(stages))
    assert.equal("cnn", discover.type(stages))
    assert.same({ 4, 8 }, discover.widths(stages))
  end)

  it("takes numbered features as stages and a numbered classifier as the head", function()
    local stages = stages_of { ["features.0.weight"] = { 4, 3, 3, 3 }, ["features.3.weight"] = { 8, 4, 3, 3 },
      ["features.12.weight"] = { 8, 8, 3, 3 }, ["classifier.0.weight"] = { 20, 8 }, ["classifier.3.weight"] = { 10, 20 } }
    assert.same({ "features.0 convolution 1", "features.3 convolution 1", "features.12 convolution 1", "classifier.3 head 2" },
      summary(stages))
  end)

  it("takes a recurrent network by its layers, both directions together", function()
    local shapes = { ["emb.weight"] = { 30, 6 }, ["fc.weight"] = { 30, 20 } }
    for layer = 0, 1 do
      for _, way in ipairs { "", "_reverse" } do
        shapes[("lstm.weight_ih_l%d%s"):format(layer, way)] = { 40, layer == 0 and 6 or 20 }
        shapes[("lstm.weight_hh_l%d%s"):format(layer, way)] = { 40, 10 }
        shapes[("lstm.bias_ih_l%d%s"):format(layer, way)] = { 40 }
      end
    end
    local stages = stages_of(shapes)
    assert.same({ "emb stem 1", "lstm.layer.0 recurrent 6", "lstm.layer.1 recurrent 6", "fc head 1" }, summary(stages))
    assert.equal("rnn", discover.type(stages))
    assert.same({ 10 }, discover.widths(stages))
  end)

  it("tells parameters from state", function()
    local function buffer(name, shape, dtype) return discover.is_buffer(name, { shape = shape, dtype = dtype or "F32" }) end
    assert.is_true(buffer("bn1.running_mean", { 4 }))
    assert.is_true(buffer("bn1.num_batches_tracked", {}, "I64"))
    assert.is_true(buffer("h.0.attn.bias", { 1, 1, 64, 64 }))
    assert.is_true(buffer("layers.0.rotary_emb.inv_freq", { 8 }))
    assert.is_false(buffer("h.0.attn.c_attn.bias", { 96 }))
    assert.is_false(buffer("conv1.weight", { 4, 3, 7, 7 }))
  end)
end)
