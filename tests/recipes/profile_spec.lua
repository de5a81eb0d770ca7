local json = require "onn.core.json"
local support = require "tests.support"
local system = require "onn.core.system"

describe("onn profile", function()
  local cache
  setup(function() cache = support.scratch() end)
  teardown(support.scratch_remove)
  local function profile(words) return support.shell(("XDG_CACHE_HOME=%s %s profile %s"):format(cache, support.onn, words)) end

  it("would measure nothing with --dry-run, and explains itself", function()
    assert.equal(0, (profile "--dry-run"))
    assert.is_false(system.exists(cache .. "/onn"))
    local status, out = profile "--help"
    assert.equal(0, status)
    assert.matches("%-%-fresh", out)
    local err
    status, out, err = profile "--frehs"
    assert.equal(2, status)
    assert.equal("", out)
    assert.matches("%-%-fresh", err)
  end)

  it("gives the hardware's keys and the curves, and keeps them", function()
    local status, out, err = profile "--json"
    assert.equal(0, status, err)
    local p = assert(json.decode(out))
    for key, kind in pairs { device_type = "string", device_name = "string", total_memory_gb = "number", available_memory_gb = "number",
      compute_units = "number", compute_capability = "string", memory_bandwidth_gbps = "number", host_to_device_bandwidth_gbps = "number",
      supports_fp16 = "boolean", supports_bf16 = "boolean", supports_int8 = "boolean", products = "table", memory = "table" } do
      assert.equal(kind, type(p[key]), key)
    end
    assert.equal(system.cpu_count(), p.compute_units)
    local last = 0
    for _, one in ipairs(p.memory) do
      assert.is_true(one.bytes > last and one.read > 0 and one.decode > 0 and one.copy > 0)
      last = one.bytes
    end
    local file = cache .. "/onn/" .. system.list(cache .. "/onn")[1]
    assert.equal(1, #system.list(cache .. "/onn"))
    local kept = json.decode(support.read(file))
    for name in pairs(kept.shares) do kept.shares[name] = 1 end -- as on a quiet machine
    support.write(file, json.encode(kept))
    local bytes = support.read(file)
    status, out, err = profile ""
    assert.equal(0, status)
    assert.equal("", err)
    assert.matches("GFLOP/s", out)
    assert.equal(bytes, support.read(file))
  end)
end)
