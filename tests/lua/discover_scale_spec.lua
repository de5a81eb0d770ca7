-- Discovery of large stores, however their tensors are named: linear in their number.
local discover = require "onn.discover"
local findings = require "onn.discover.findings"
local system = require "onn.core.system"

local function seconds(name_of, shape_of, n)
  local names, infos = {}, {}
  for i = 1, n do
    local name = name_of(i - 1)
    names[i], infos[name] = name, { shape = shape_of(i), dtype = "F32", bytes = 4 }
  end
  collectgarbage()
  local began = system.now()
  local stages, stacks = discover.stages(names, function(name) return infos[name] end)
  local list = findings.of(stages, stacks)
  local total = 0
  for _, stage in ipairs(stages) do total = total + #stage.tensors end
  assert.equal(n, total)
  assert.is_true(#list < 100)
  return system.now() - began
end

local namings = {
  experts = function(i) return ("model.layers.%d.experts.%d.w%d.weight"):format(i % 100, math.floor(i / 300), math.floor(i / 100) % 3) end,
  list = function(i) return "parameters." .. i end,
  modules = function(i) return ("part%sx.weight"):format(("%05d"):format(i):gsub("%d", function(d) return string.char(97 + d) end)) end,
  layers = function(i) return ("h.%d.%s"):format(i / 4, ({ "a", "b", "c", "d" })[i % 4 + 1]) end,
  ["in words"] = function(i) return ("block%d.a%d.b%d.c"):format(i % 1000, math.floor(i / 1000) % 10, math.floor(i / 10000)) end,
  stacks = function(i) return ("s%sz.%d.w"):format(("%05d"):format(i / 2):gsub("%d", function(d) return string.char(97 + d) end), i % 2) end,
  ["numbers only"] = function(i) return ("%d.%d.%d.%d.%d"):format(i % 10, i / 10 % 10, i / 100 % 10, i / 1000 % 10, i / 10000) end,
}
local shapes = {
  alike = function() return { 4, 4 } end,
  ["all different"] = function(i) return { i, 4 } end,
  vectors = function(i) return { i % 50 + 1 } end,
}

describe("discovery of a large store", function()
  it("of 100,000 tensors takes seconds", function()
    local spent = seconds(namings.experts, shapes["all different"], 100000)
    assert.is_true(spent < 30, ("%.1f s"):format(spent))
  end)

  for naming, name_of in pairs(namings) do
    for kind, shape_of in pairs(shapes) do
      it(("is linear in the number of tensors: %s, %s"):format(naming, kind), function()
        local small, large = seconds(name_of, shape_of, 1000), seconds(name_of, shape_of, 8000)
        assert.is_true(large < 40 * small + 1, ("%.2f s for 1,000, %.2f s for 8,000"):format(small, large))
      end)
    end
  end
end)
