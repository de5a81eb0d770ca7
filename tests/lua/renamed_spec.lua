-- Discovery on the golden models without their configs and under names that say nothing: what it finds against what the configs say.
local discover = require "onn.discover"
local findings = require "onn.discover.findings"
local json = require "onn.core.json"
local program = require "onn.core.program"
local stores = require "onn.core.store"
local support = require "tests.support"
local system = require "onn.core.system"

local golden = program.home .. "/../shared/golden"
local silero = program.home .. "/../shared/data/silero-vad/silero_vad_16k.safetensors"

-- 0 -> "a", 25 -> "z", 26 -> "ba": words without a number in them.
local function letters(n)
  local text = ""
  repeat
    text, n = string.char(97 + n % 26) .. text, math.floor(n / 26)
  until n == 0
  return text
end

-- A dictionary of words in the order of their first use, each as `spell` writes its number.
local function dictionary(spell)
  local known, count = {}, 0
  return function(word)
    if not known[word] then known[word], count = spell(count), count + 1 end
    return known[word]
  end
end

local function parts(name)
  local list = {}
  for part in name:gmatch "[^.]+" do list[#list + 1] = part end
  return list
end

-- Each convention makes a function of a name.
local conventions = {}
-- model.layers.0.self_attn.q_proj.weight -> a.b.0.c.d.e: every word is another one
function conventions.words()
  local word = dictionary(letters)
  return function(name)
    local list = parts(name)
    for i, part in ipairs(list) do if not part:find "^%d+$" then list[i] = word(part) end end
    return table.concat(list, ".")
  end
end
-- model.layers.0.self_attn.q_proj.weight -> a.b.0.c: what follows the number is one word
function conventions.flat()
  local word, rest = dictionary(letters), dictionary(letters)
  return function(name)
    local list, before = parts(name), {}
    for i, part in ipairs(list) do
      if part:find "^%d+$" then
        before[#before + 1] = part
        before[#before + 1] = rest(table.concat(list, ".", i + 1))
        return table.concat(before, ".")
      end
      before[#before + 1] = word(part)
    end
    return table.concat(before, ".")
  end
end
-- model/layers/0/...: other separators, words reversed
function conventions.slashes()
  return function(name)
    local list = parts(name)
    for i, part in ipairs(list) do if not part:find "%d" then list[i] = part:reverse() end end
    return table.concat(list, "/")
  end
end
-- Zx0_Zx1_0_Zx2: no separator but the underscore
function conventions.underscores()
  local word = dictionary(function(n) return "zx" .. letters(n) end)
  return function(name)
    local list = parts(name)
    for i, part in ipairs(list) do if not part:find "^%d+$" then list[i] = word(part) end end
    return table.concat(list, "_")
  end
end
-- The number is a part of a word, counted from 1: net.stage3.k
function conventions.embedded()
  local word = dictionary(letters)
  return function(name)
    local list, out = parts(name), {}
    for _, part in ipairs(list) do
      if not part:find "^%d+$" then
        out[#out + 1] = word(part)
      elseif out[#out]:find "%d$" then
        out[#out + 1] = "of" .. tonumber(part) + 1
      else
        out[#out] = out[#out] .. tonumber(part) + 1
      end
    end
    return table.concat(out, ".")
  end
end

local function read_config(name)
  return json.decode(support.read(golden .. "/" .. name .. "/config.json"))
end

local convolutional = { resnet = { 8, { 5, 10, 20, 40 } }, vgg = { 8, { 4, 8, 16 } }, mobilenet_v2 = { 19 } }

-- What the config says of a golden model, and the count of its parameters by their true names.
local function truth(name)
  local c = read_config(name)
  local store = assert(stores.open(golden .. "/" .. name .. "/model.safetensors"))
  local parameters, infos = 0, {}
  for _, tensor in ipairs(store:names()) do
    local info = store:info(tensor)
    infos[tensor] = info
    local n = 1
    for _, size in ipairs(info.shape) do n = n * size end
    if not (tensor:find "running_" or tensor:find "num_batches") then parameters = parameters + n end
  end
  store:close()
  local known = convolutional[name]
  local width = c.hidden_size or c.n_embd
  return { parameters = parameters, infos = infos, layers = known and known[1] or c.num_hidden_layers or c.n_layer or c.num_layers,
    widths = known and known[2] or width and { width }, vocabulary = c.vocab_size, recurrent = name == "lstm" or name == "gru",
    inner = not c.num_local_experts and (c.intermediate_size or c.ffn_dim or width and width * 4) or nil, experts = c.num_local_experts,
    transposed = name == "gpt2", tied = c.tie_word_embeddings, kind = known and "cnn" or c.num_layers and "rnn" or "transformer" }
end

-- backwards: names are given out from the last tensor on, so that their order is another one.
local function discovered(t, rename, backwards)
  local names, infos, old = {}, {}, {}
  for name in pairs(t.infos) do old[#old + 1] = name end
  table.sort(old, backwards and function(a, b) return a > b end or nil)
  for _, name in ipairs(old) do
    local info = t.infos[name]
    local new = rename and rename(name) or name
    assert(not infos[new], new)
    infos[new], names[#names + 1] = info, new
  end
  table.sort(names)
  local stages, stacks = discover.stages(names, function(name) return infos[name] end)
  local list, facts, missing = findings.of(stages, stacks)
  local parameters = 0
  for _, stage in ipairs(stages) do
    for _, one in ipairs(stage.tensors) do
      local n = 1
      for _, size in ipairs(one.shape) do n = n * size end
      if not one.buffer then parameters = parameters + n end
    end
  end
  return { stages = stages, stacks = stacks, list = list, facts = facts, missing = missing, parameters = parameters }
end

local order = { "words", "flat", "slashes", "underscores", "embedded" }

describe("discovery under invented names", function()
  if not system.isdir(golden) then return pending(golden .. " is absent") end
  for _, name in ipairs(system.list(golden)) do
    if system.isdir(golden .. "/" .. name) then
      for i = 0, 2 * #order - 1 do
        local convention, backwards = order[math.floor(i / 2) + 1], i % 2 == 1
        it(("finds %s, %s%s"):format(name, convention, backwards and ", backwards" or ""), function()
          local t = truth(name)
          local got = discovered(t, conventions[convention](), backwards)
          local f = got.facts
          assert.equal(t.parameters, got.parameters)
          assert.equal(t.layers, f.layers)
          if t.widths then assert.same(t.widths, discover.widths(got.stages)) end
          assert.equal(t.kind, f.type)
          assert.equal(t.vocabulary, f.vocabulary)
          if not t.recurrent then assert.equal(t.inner, f.inner) end
          assert.equal(t.experts, f.experts)
          if t.kind == "transformer" then
            assert.equal(t.transposed, f.transposed)
            assert.equal(t.tied, f.tied or false)
          end
          assert.is_true(#got.missing > 0)
          for _, one in ipairs(got.list) do assert.is_true(one.confidence > 0 and one.confidence <= 1, one.what) end
        end)
      end
    end
  end

  it("finds the layers of silero-vad", function()
    if not system.exists(silero) then return pending(silero .. " is absent") end
    local store, infos = assert(stores.open(silero)), {}
    for _, name in ipairs(store:names()) do infos[name] = store:info(name) end
    store:close()
    local got = discovered { infos = infos }
    local kinds = {}
    for i, stage in ipairs(got.stages) do kinds[i] = stage.name .. " " .. stage.kind end
    assert.same({ "stft_conv stem", "conv1 convolution", "conv2 convolution", "conv3 convolution", "conv4 convolution",
      "lstm_cell recurrent", "final_conv head" }, kinds)
    assert.equal("hybrid", got.facts.type)
    assert.same({ "lstm", 128 }, { got.facts.cell, got.facts.hidden })
    assert.equal(309633, got.parameters)
  end)
end)
