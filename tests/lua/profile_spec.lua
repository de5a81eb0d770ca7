local probes = require "onn.probes"
local profile = require "onn.profile"
local support = require "tests.support"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

describe("onn.profile", function()
  local made = { products = { { dtype = "f32", rows = 1, flops = 5 }, { dtype = "f32", rows = 8, flops = 9 } },
    memory = { { bytes = 100, read = 50, copy = 1 }, { bytes = 300, read = 30, copy = 2 } }, shares = { products = 0.9, memory = 0.4 } }

  it("takes the highest rate of a dtype", function() assert.equal(9, profile.peak_flops(made, "f32")) end)

  it("measures arithmetic that was not measured", function() assert.is_true(profile.peak_flops(made, "bf16") > 1e6) end)

  it("reads rates of memory between the measured sizes and beyond them", function()
    assert.same({ 50, 50, 40, 30, 30 }, { profile.memory_rate(made, "read", 1), profile.memory_rate(made, "read", 100),
      profile.memory_rate(made, "read", 200), profile.memory_rate(made, "read", 300), profile.memory_rate(made, "read", 1e9) })
  end)

  it("knows the section that was disturbed most, and says so", function()
    assert.equal(0.4, profile.least_share(made))
    assert.matches("40 %% of the processors were left", profile.doubt(made))
    assert.is_nil(profile.doubt { shares = { products = 0.9 } })
  end)

  it("leaves threads and budget as they were, measures what is missing, and keeps it", function()
    local folder = support.scratch()
    local before, threads = os.getenv "XDG_CACHE_HOME", tensors.threads()
    system.setenv("XDG_CACHE_HOME", folder)
    tensors.set_threads(1)
    tensors.set_budget(3e8)
    local heard = {}
    local p = profile.get { note = function(name) heard[#heard + 1] = name end }
    local budget, count = tensors.memory().budget, tensors.threads()
    tensors.set_budget(math.huge)
    tensors.set_threads(threads)
    local again = profile.get { note = function(name) heard[#heard + 1] = name end }
    system.setenv("XDG_CACHE_HOME", before)
    local files = system.list(folder .. "/onn")
    support.scratch_remove()
    assert.same({ 3e8, 1 }, { budget, count })
    assert.same({ "products" }, heard)
    assert.equal(1, #files)
    assert.equal(profile.peak_flops(p, "f32"), profile.peak_flops(again, "f32"))
    for _, one in ipairs(p.products) do assert.is_true(one.flops > 0) end
  end)

  it("gives a rate that the clock confirms", function()
    local core = require "onn.core.ops"
    local rows, out, into = 64, 512, 512
    local rate = probes.product("f32", rows, out, into)
    local x, w = tensors.new("f32", { rows, into }):fill(1), tensors.new("f32", { out, into }):fill(1)
    local best = math.huge
    for _ = 1, 50 do
      local began = system.now()
      core.linear(x, w):free()
      best = math.min(best, system.now() - began)
    end
    local again = 2 * rows * out * into / best
    assert.is_true(rate < 30 * again and again < 30 * rate, ("%g and %g"):format(rate, again)) -- others may take the processors
  end)

  it("measures a disk and leaves no file", function()
    local folder = support.scratch()
    local disk = probes.disk(folder)
    local left = system.list(folder)
    support.scratch_remove()
    assert.same({}, left)
    if disk then assert.is_true(disk.warm > 0 and disk.write > 0 and (not disk.cold or disk.cold > 0)) end
  end)
end)
