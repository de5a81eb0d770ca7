-- Models that a Lua file defines: training, evaluating, running and inspecting them; Silero's detector against onnxruntime on its file.
local core = require "onn.core.ops"
local Model = require "onn.model"
local program = require "onn.core.program"
local store = require "onn.core.store"
local support = require "tests.support"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"
local json = require "onn.core.json"

local models = program.home .. "/recipes/models"

local function normal(shape, name) return core.normal(tensors.new("f32", shape), 1, name, 0, 1) end
local function write(path, values) assert(store.write(path, values, { format = "pt" })) return path end

-- 160 rows of 8 numbers; the class is the largest of three of their sums.
local function table_data(path)
  local x, classes = normal({ 160, 8 }, "x"), {}
  local scores = core.matmul(x, normal({ 8, 3 }, "w")):totable()
  for r, s in ipairs(scores) do classes[r] = (s[1] >= s[2] and s[1] >= s[3]) and 0 or s[2] >= s[3] and 1 or 2 end
  return write(path, { x = x, y = tensors.from_table(classes, "i64") })
end

local function losses(log)
  local list = {}
  for line in support.read(log):gmatch "[^\n]+" do list[#list + 1] = json.decode(line).loss end
  return list
end

describe("a model in a Lua file", function()
  local folder, data
  setup(function()
    folder = support.scratch()
    data = table_data(folder .. "/table.safetensors")
  end)
  teardown(function() support.scratch_remove() end)

  local function onn(...)
    local status, out, err = support.run { ... }
    assert.equal(0, status, err)
    return out, err
  end

  it("learns a table's classes, and is evaluated and run from what was written", function()
    onn("train", models .. "/residual_mlp.lua", data, "--out", folder .. "/mlp", "--epochs", "12", "--batch", "32", "--lr", "5e-3")
    local result = json.decode((onn("evaluate", folder .. "/mlp/residual_mlp.lua", data, "--json")))
    assert.is_true(result.loss < 0.25, "loss " .. result.loss)
    assert.equal(160, result.tokens)
    onn("forward", folder .. "/mlp/residual_mlp.lua", "--input", data, "--output", folder .. "/out.safetensors")
    local out, given = assert(store.open(folder .. "/out.safetensors")), assert(store.open(data))
    local best, y, right = core.reduce(out:read "logits", "argmax"):totable(), given:read("y"):totable(), 0
    for r, class in ipairs(best) do if class == y[r] then right = right + 1 end end
    assert.is_true(right > 144, right .. " of 160 are right")
  end)

  it("takes an adapter once it has weights, and the same bits with any micro-batch, threads and slots", function()
    onn("train", models .. "/residual_mlp.lua", data, "--out", folder .. "/base", "--steps", "2", "--batch", "32")
    local bits
    for i, more in ipairs { {}, { "--micro-batch", "5", "--threads", "1" }, { "--slots", "1" }, { "--recompute", "on" } } do
      local out = folder .. "/adapter" .. i
      onn("train", folder .. "/base/residual_mlp.lua", data, "--out", out, "--steps", "4", "--batch", "32", unpack(more))
      local now = support.read(out .. "/adapter_model.safetensors")
      bits = bits or now
      assert.is_true(bits == now, table.concat(more, " "))
    end
    onn("evaluate", folder .. "/base/residual_mlp.lua", data, "--adapter", folder .. "/adapter1")
  end)

  it("trains all weights to the same bits with any micro-batch", function()
    local bits
    for i, more in ipairs { {}, { "--micro-batch", "7" }, { "--recompute", "on" } } do
      local out = folder .. "/full" .. i
      onn("train", models .. "/residual_mlp.lua", data, "--out", out, "--steps", "4", "--batch", "32", unpack(more))
      local now = support.read(out .. "/residual_mlp.safetensors")
      bits = bits or now
      assert.is_true(bits == now, table.concat(more, " "))
    end
  end)

  it("learns pictures, from .npy files too", function()
    local z, f = normal({ 96, 3 }, "z"), normal({ 3, 64 }, "f")
    local pictures = core.unary(core.matmul(z, f), "tanh"):view { 96, 1, 8, 8 }
    local header = "{'descr': '<f4', 'fortran_order': False, 'shape': (96, 1, 8, 8), }"
    header = header .. (" "):rep(128 - 10 - #header - 1) .. "\n"
    local text = "\147NUMPY\1\0" .. string.char(#header % 256, math.floor(#header / 256)) .. header .. pictures:data()
    assert(system.mkdir_p(folder .. "/pictures"))
    for _, name in ipairs { "x", "y" } do support.write(("%s/pictures/%s.npy"):format(folder, name), text) end
    onn("train", models .. "/autoencoder.lua", folder .. "/pictures", "--out", folder .. "/coder", "--epochs", "12", "--batch", "16", "--lr", "5e-3",
      "--log", folder .. "/coder.log")
    local all = losses(folder .. "/coder.log")
    assert.is_true(all[#all] < 0.4 * all[1], ("%g -> %g"):format(all[1], all[#all]))
  end)

  it("is inspected, without weights too", function()
    local out = json.decode((onn("inspect", models .. "/residual_mlp.lua", "--json")))
    assert.is_true(out.runnable)
    assert.equal(5, out.num_layers)
    assert.equal(8 * 32 + 32 + 2 * (64 + 2 * 32 * 64 + 64 + 32) + 64 + 32 * 3 + 3, out.total_params)
  end)

  it("says in one line what is wrong", function()
    local function says(pattern, ...)
      local status, _, err = support.run { ... }
      assert.equal(1, status)
      assert.is_truthy(err:find(pattern), err)
    end
    local function file(name, text) return support.write(folder .. "/" .. name, text) end
    says("should end with `return nn.model", "train", file("a.lua", "return 3"), data)
    says("bytecode", "train", file("b.lua", string.dump(function() end)), data)
    says("a square needs", "train", file("c.lua", "error 'a square needs four sides'"), data)
    local mistake = "local nn = require 'onn.nn' return nn.model { input = { 8 }, nn.linear(8, 3, { nmae = 'a' }) }"
    says("unknown option 'nmae'; did you mean 'name'", "train", file("d.lua", mistake), data)
    local wide = "local nn = require 'onn.nn' return nn.model { input = { 9 }, loss = 'classes', nn.linear(9, 3) }"
    says("table.safetensors: x is %(160, 8%), expected %(rows, 9%)", "train", file("e.lua", wide), data)
    says("row %d+ of y is class 2; the model has 0 to 1", "train", file("f.lua", (wide:gsub("9", "8"):gsub(", 3", ", 2"))), data)
  end)
end)

-- The initializers of an ONNX file: name -> raw little-endian f32 (a protobuf message; see onnx.proto3).
local function initializers(text)
  local function varint(s, at)
    local value, scale = 0, 1
    repeat
      local byte = s:byte(at)
      value, scale, at = value + byte % 128 * scale, scale * 128, at + 1
    until byte < 128
    return value, at
  end
  local function fields(s, f)
    local at = 1
    while at <= #s do
      local key, value
      key, at = varint(s, at)
      local wire, number = key % 8, math.floor(key / 8)
      if wire == 0 then value, at = varint(s, at)
      elseif wire == 2 then
        local size
        size, at = varint(s, at)
        value, at = s:sub(at, at + size - 1), at + size
      else at = at + (wire == 5 and 4 or 8) end
      f(number, value)
    end
  end
  local found = {}
  fields(text, function(number, graph)
    if number ~= 7 then return end
    fields(graph, function(kind, tensor)
      if kind ~= 5 then return end
      local name, raw
      fields(tensor, function(k, value) if k == 8 then name = value elseif k == 9 then raw = value end end)
      found[name] = raw
    end)
  end)
  return found
end

describe("Silero's detector", function()
  local shared = program.home .. "/../shared/data/silero-vad"
  local names = { ["stft_conv.weight"] = "stft.forward_basis_buffer", ["final_conv.weight"] = "decoder.decoder.2.weight",
    ["final_conv.bias"] = "decoder.decoder.2.bias" }
  for i = 1, 4 do
    for _, part in ipairs { "weight", "bias" } do names[("conv%d.%s"):format(i, part)] = ("encoder.%d.reparam_conv.%s"):format(i - 1, part) end
  end
  for _, part in ipairs { "weight_ih", "weight_hh", "bias_ih", "bias_hh" } do names["lstm_cell." .. part] = "decoder.rnn." .. part end

  it("gives onnxruntime's probabilities", function()
    if not system.exists(shared) then return pending(shared .. " is absent") end
    local folder = support.scratch()
    local path = support.write(folder .. "/silero_vad.lua", support.read(models .. "/silero_vad.lua"))
    local fresh, raw, values = assert(Model.open(path)), initializers(support.read(shared .. "/silero_vad_16k_op15.onnx")), {}
    for _, stage in ipairs(fresh.stages) do
      for _, t in ipairs(stage.tensors) do values[t.name] = tensors.from_data(raw["model." .. names[t.name]], "f32", t.shape) end
    end
    write(folder .. "/silero_vad.safetensors", values)
    local model, golden = assert(Model.open(path)), assert(store.open(program.home .. "/tests/recipes/fixtures/silero.safetensors"))
    assert.same({}, model.missing)
    assert(model:load())
    local b = assert(model.net.batch(model.sizes, { x = golden:read "x" }))
    local got, want = model:forward(model:carry(b), {}).logits:totable()[1], golden:read("probabilities"):totable()[1]
    assert.equal(#want, #got)
    for k = 1, #want do assert.is_true(math.abs(got[k] - want[k]) <= 1e-4, ("chunk %d: %g, expected %g"):format(k, got[k], want[k])) end
    model:close()
    support.write(folder .. "/silero_vad.safetensors", support.read(shared .. "/silero_vad_16k.safetensors"))
    assert.same({}, assert(Model.open(path)).missing)
    support.scratch_remove()
  end)
end)
