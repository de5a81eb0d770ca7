-- Every golden config changed key by key: opening gives a model that runs, or a list of what is wrong; never an error, a hang or a flood.
local arch = require "onn.arch"
local batch = require "onn.batch"
local json = require "onn.core.json"
local Model = require "onn.model"
local program = require "onn.core.program"
local stores = require "onn.core.store"
local support = require "tests.support"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local golden = program.home .. "/../shared/golden"

local absent = {}
local bad = { absent = absent, null = json.null, text = "many", empty = "", negative = -1, zero = 0, one = 1, fraction = 1.5, large = 2 ^ 20,
  huge = 2 ^ 40, ["beyond all"] = 1e300, tiny = 1e-300, yes = true, no = false, object = { a = 1 }, ["empty object"] = {},
  list = { 1, 2 }, ["list of text"] = { "x", "y" }, nested = { { { 3 } } } }

local kinds = {}
for kind in pairs(bad) do kinds[#kinds + 1] = kind end
table.sort(kinds)

local function copy(value)
  if type(value) ~= "table" or value == json.null then return value end
  local out = setmetatable({}, getmetatable(value))
  for k, v in pairs(value) do out[k] = copy(v) end
  return out
end

-- Every place of a config: keys, and those of objects in it.
local function places(config, path, list)
  for key, value in pairs(config) do
    if type(key) == "string" then
      local here = { unpack(path) }
      here[#here + 1] = key
      list[#list + 1] = here
      if type(value) == "table" and value ~= json.null then places(value, here, list) end
    end
  end
  return list
end

local function put(config, place, value)
  local at = config
  for i = 1, #place - 1 do at = at[place[i]] end
  if value == absent then value = nil end
  at[place[#place]] = value
  return config
end

-- Opens the model at `path` under `config`: returns "runs" or "refused"; raises what must not happen.
local function outcome(path, config)
  local model, message = Model.open(path, { dtype = "f32", config = config })
  if not model then
    assert(type(message) == "string" and not message:find "%c", message)
    return "refused"
  end
  local line = model:why_not()
  assert(#line < 2200 and not line:find "%c", line)
  if #model.missing > 0 then
    model:close()
    return "refused"
  end
  assert(model:load())
  local ran, problem = pcall(function()
    local b = batch.from_ids(tensors.from_table({ { 1, 2, 3 } }, "i64"))
    return model:forward(model:carry(b), {})
  end)
  model:close()
  if not ran then error(tostring(problem), 0) end
  return "runs"
end

local function runs_here(path)
  local config = json.decode(support.read(path .. "/config.json"))
  if config.architecture then return nil end -- of images or of letters: their specs have their own batches
  return arch.describe(config) and config
end

describe("a bad config", function()
  if not system.isdir(golden) then return pending(golden .. " is absent") end
  for _, name in ipairs(system.list(golden)) do
    local path = golden .. "/" .. name
    local sound = system.isdir(path) and runs_here(path)
    if sound then
      it("of " .. name .. " is refused in a line, or does not matter", function()
        local refused, began = 0, system.now()
        for _, place in ipairs(places(sound, {}, {})) do
          for _, kind in ipairs(kinds) do
            local value = bad[kind]
            local ok, got = pcall(outcome, path, put(copy(sound), place, value == absent and absent or copy(value)))
            assert.is_true(ok, ("%s %s: %s"):format(table.concat(place, "."), kind, tostring(got)))
            if got == "refused" then refused = refused + 1 end
          end
        end
        assert.is_true(refused > 50, refused .. " were refused")
        assert.is_true(system.now() - began < 120)
        collectgarbage()
        assert.is_true(collectgarbage "count" < 500e3)
      end)

      it("of " .. name .. " lists all that is wrong", function()
        local config = copy(sound)
        local keys = {}
        for key, value in pairs(config) do
          if key == "hidden_size" or key == "n_embd" or key == "num_attention_heads" or key == "n_head" or key == "vocab_size" then
            assert(type(value) == "number")
            config[key], keys[#keys + 1] = -1, key
          end
        end
        local described, wrong = arch.describe(config)
        assert.is_nil(described)
        local all = table.concat(wrong, "\n")
        for _, key in ipairs(keys) do assert.truthy(all:find("'" .. key .. "'", 1, true), key .. ": " .. all) end
      end)
    end
  end
end)

describe("a store that does not fit its config", function()
  if not system.isdir(golden) then return pending(golden .. " is absent") end
  local folder
  setup(function() folder = support.scratch() end)
  teardown(support.scratch_remove)

  for _, name in ipairs(system.list(golden)) do
    local path = golden .. "/" .. name
    if system.isdir(path) and runs_here(path) then
      it("says so in one line: " .. name, function()
        local store, values = assert(stores.open(path .. "/model.safetensors")), {}
        local names = store:names()
        for _, tensor in ipairs(names) do values[tensor] = assert(store:read(tensor)) end
        local function line_of(changes)
          local all = {}
          for k, v in pairs(values) do all[k] = v end
          for k, v in pairs(changes) do all[k] = v or nil end
          assert(stores.write(folder .. "/model.safetensors", all, { format = "pt" }))
          support.write(folder .. "/config.json", support.read(path .. "/config.json"))
          local model = assert(Model.open(folder, { dtype = "f32" }))
          local line, count = model:why_not(), #model.missing
          model:close()
          return line, count
        end
        local first, last = names[1], names[#names]
        local line, count = line_of { [first] = false, [last] = tensors.zeros("f32", { 3, 5, 7 }), extra = tensors.zeros("f32", { 2 }) }
        assert.is_true(count >= 2)
        assert.truthy(line:find("'" .. last .. "'", 1, true), line)
        assert.truthy(line:find("'extra' is not expected", 1, true), line)
        assert.is_true(#line < 2200 and not line:find "%c")
        assert.truthy(line:find("(3, 5, 7)", 1, true), line)
        store:close()
      end)
    end
  end
end)
