-- Carries within a quota: what is thrown out, what comes back, and what is left after an error.
local carries = require "onn.carries"
local core = require "onn.core.tensor"
local onn = require "onn"
local support = require "tests.support"

local MB = 2 ^ 20

local function used()
  collectgarbage()
  collectgarbage()
  return core.memory().used
end

local function tensor(value) return core.new("f32", { 256, 1024 }):fill(value) end -- 1 MB

local function holds(t, value)
  local flat = t:view { 256 * 1024 }
  local first, last = flat:narrow(1, 1, 1), flat:narrow(1, 256 * 1024, 1)
  local same = first:item() == value and last:item() == value
  for _, view in ipairs { flat, first, last } do view:free() end -- views hold the storage
  return same
end

-- The training sweep's order: boundaries 1..L, each of all micro-batches, then back. Returns the most memory used.
local function sweep(c, boundaries, micros, held)
  local base, most = held or core.memory().used, 0
  local function key(b, m) return ("h:%d:%d"):format(b, m) end
  local function due(b, m) return (2 * boundaries - b) * micros + m end
  local function look() most = math.max(most, core.memory().used - base) end
  for b = 1, boundaries do
    for m = 1, micros do
      if b > 1 then -- the boundary below is read, and needed once more on the way back
        assert.is_true(holds(c:get(key(b - 1, m)), (b - 1) * 100 + m))
        look()
      end
      c:put(key(b, m), tensor(b * 100 + m), b < boundaries and b * micros + m or due(b, m))
      look()
      if b > 1 then c:release(key(b - 1, m), due(b - 1, m)) end
    end
  end
  for b = boundaries, 1, -1 do
    for m = 1, micros do
      assert.is_true(holds(c:get(key(b, m)), b * 100 + m), key(b, m))
      look()
      c:release(key(b, m))
    end
  end
  return most
end

describe("carries", function()
  local folder, before
  setup(function() folder = support.scratch() end)
  teardown(support.scratch_remove)
  before_each(function() before = used() end)
  after_each(function() assert.equal(before, used()) end)

  it("stay in memory without a quota, and make no file", function()
    local c = carries.new { quota = math.huge, scratch = folder }
    local most = sweep(c, 6, 4)
    assert.equal(24 * MB, most)
    assert.same({ 0, 0, 0, 0 }, { c:stats().count, c:stats().memory, c:stats().written, c:stats().file })
    local d = carries.new { quota = 4 * MB } -- nowhere to go
    assert.equal(24 * MB, sweep(d, 6, 4))
  end)

  it("keep to the quota, whatever it is", function()
    for _, quota in ipairs { 20, 12, 8, 5 } do
      local c = carries.new { quota = quota * MB, scratch = folder }
      local most = sweep(c, 6, 4)
      -- and the tensor that is being put, and the buffer of the scratch file
      assert.is_true(most <= (quota + 1) * MB + 2 ^ 18, ("%d MB: %.2f MB in memory"):format(quota, most / MB))
      local stats = c:stats()
      assert.is_true(stats.written > 0 and stats.written <= 24 * MB, "each is written at most once")
      assert.is_true(quota > 5 or stats.read > 0, "what was still on its way came from memory, not all")
      assert.same({ 0, 0, 0 }, { stats.count, stats.memory, stats.file })
      c:clear()
      assert.equal(stats.written, c:stats().written)
    end
    local c = carries.new { quota = 0, scratch = folder } -- only what is in use, and what is on its way
    assert.is_true(sweep(c, 6, 4) <= 4 * MB)
    c:clear()
  end)

  it("have another quota for a while, also where that ends in an error", function()
    local c = carries.new { quota = 4 * MB, scratch = folder }
    local function fill(n) for i = 1, n do c:put("k" .. i, tensor(i), i) end end
    for _, fails in ipairs { false, true } do
      local written = c:stats().written
      assert.same({ not fails, fails and "in the middle" or 12 }, { pcall(c.with_quota, c, 12 * MB, function()
        fill(12)
        assert.equal(written, c:stats().written)
        if fails then error("in the middle", 0) end
        return c:stats().count
      end) })
      assert.equal(0, c:stats().count)
      fill(8)
      assert.is_true(c:stats().memory <= 3 * MB and c:stats().written > written)
      c:clear()
    end
  end)

  it("take a quota that is no multiple of four", function()
    local c = carries.new { quota = 4 * MB + 2, scratch = folder }
    assert.is_true(sweep(c, 3, 4) <= 5 * MB + 2 ^ 18 + 2)
    assert.is_true(c:stats().written > 0)
    c:clear()
  end)

  it("use the file's places again", function()
    local c = carries.new { quota = 6 * MB, scratch = folder }
    local length
    for _ = 1, 3 do
      sweep(c, 5, 4)
      for i = 1, 20 do c:put("x" .. i, tensor(i), i) end
      length = length or c:stats().file
      assert.equal(length, c:stats().file)
      for i = 1, 20 do
        assert.is_true(holds(c:get("x" .. i), i))
        c:release("x" .. i)
      end
    end
    c:clear()
  end)

  it("throw out what is needed last, and write it once", function()
    local c = carries.new { quota = 4 * MB, scratch = folder }
    for i, due in ipairs { 3, 9, 1, 7, 5 } do c:put("k" .. i, tensor(i), due) end
    -- 9 went when 5 came; with the file open a quarter is for writes under way, so 7 went as well
    assert.equal(3 * MB, c:stats().memory)
    assert.is_true(c.entries.k2.tensor == nil and c.entries.k4.tensor == nil)
    local k4 = c:get "k4"
    assert.is_true(holds(k4, 4))
    c:release("k4", 7) -- in the file already: only dropped when its turn comes
    c:put("k6", tensor(6), 2)
    for i = 1, 6 do
      assert.is_true(holds(c:get("k" .. i), i))
      c:release("k" .. i, 10 + i)
    end
    assert.is_true(c:stats().written <= 6 * MB)
    for i = 1, 6 do
      assert.is_true(holds(c:get("k" .. i), i))
      c:release("k" .. i)
    end
    c:clear()
  end)

  it("bring back ahead of need, but not in place of what is needed sooner", function()
    local c = carries.new { quota = 4 * MB, scratch = folder }
    for i = 1, 8 do c:put("k" .. i, tensor(i), i) end -- 1, 2, 3 stay
    assert.is_true(c.entries.k3.tensor ~= nil and c.entries.k4.tensor == nil)
    c:get "k1"
    assert.is_nil(c.entries.k4.coming)
    c:release "k1"
    c:get "k2"
    assert.is_true(c.entries.k4.coming)
    assert.is_nil(c.entries.k5.coming)
    c:release "k2"
    for i = 3, 8 do
      assert.is_true(holds(c:get("k" .. i), i))
      c:release("k" .. i)
    end
    -- one on its way is given up where something sooner needs the room
    for i = 1, 8 do c:put("k" .. i, tensor(i), 10 * i) end
    c:get "k1"
    c:release "k1"
    c:get "k2"
    assert.is_true(c.entries.k4.coming)
    for i = 1, 3 do c:put("s" .. i, tensor(100 + i), i) end
    assert.is_nil(c.entries.k4.coming)
    for i = 1, 3 do
      assert.is_true(holds(c:get("s" .. i), 100 + i))
      c:release("s" .. i)
    end
    c:release "k2"
    for i = 3, 8 do assert.is_true(holds(c:get("k" .. i), i)) end -- in use, all of them
    assert.equal(6 * MB, c:stats().memory)
    c:clear()
  end)

  it("outlive scopes, may be in use twice, and are freed by clear", function()
    local c = carries.new { quota = 4 * MB, scratch = folder }
    for i = 1, 8 do onn.scope(function() c:put("k" .. i, tensor(i), i) end) end
    local kept = onn.scope(function()
      c:get "k8"
      return nil
    end)
    assert.is_nil(kept)
    assert.equal(c:get "k8", c.entries.k8.tensor)
    c:release("k8", 1)
    assert.is_true(holds(c.entries.k8.tensor, 8))
    c:release("k8", 1)
    assert.error_matches(function() c:release "k8" end, "'k8' is not in use")
    assert.error_matches(function() c:get "k9" end, "there is no 'k9'")
    local t = tensor(1)
    assert.error_matches(function() c:put("k1", t, 1) end, "there is a 'k1' already")
    assert.error_matches(function() c:put("k9", t:transpose(), 1) end, "not contiguous")
    t:free()
    pcall(onn.scope, function()
      c:get "k3"
      error "in the middle"
    end)
    c:clear()
    assert.equal(before, used())
    c:put("k1", tensor(1), 1)
    c:clear()
    assert.error_matches(function() carries.new { qouta = 1 } end, "unknown option 'qouta'; did you mean 'quota'%?")
  end)

  it("want the space that they may need, and a directory", function()
    local c = carries.new { quota = MB, scratch = folder, expected = 2 ^ 60 }
    c:put("a", tensor(1), 1)
    local ok, message = pcall(c.put, c, "b", tensor(2), 2)
    assert.is_false(ok)
    assert.matches("^scratch directory .*: up to [%d.]+ PB will be needed, [%d.]+ [GT]B are free$", message)
    for _, key in ipairs { "a", "b" } do assert.is_true(c.entries[key].tensor ~= nil) end -- nothing is lost
    c:clear()
    c = carries.new { quota = 0, scratch = folder .. "/absent" }
    ok, message = pcall(c.put, c, "a", tensor(1), 1)
    assert.is_false(ok)
    assert.equal(folder .. "/absent: No such file or directory", message)
    c:clear()
  end)
end)

-- A child on a disk that fails: says what came out, and is to have all its memory back after clear().
local script = [[
local carries, core = require "onn.carries", require "onn.core.tensor"
local before = core.memory().used
local c = carries.new { quota = 4 * 2 ^ 20, scratch = arg[1] }
local function run()
  for i = 1, 40 do c:put("k" .. i, core.new("f32", { 256, 1024 }):fill(i), -i) end
  for i = 1, 40 do
    assert(c:get("k" .. i):narrow(1, 256, 1):narrow(2, 1024, 1):item() == i, "contents")
    c:release("k" .. i)
  end
end
print(select(2, pcall(run)))
c:clear()
collectgarbage()
collectgarbage()
assert(core.memory().used == before, "memory is not given back")
print "whole"
]]

describe("carries on a disk that fails", function()
  local folder, fault, file
  setup(function()
    folder = support.scratch()
    file = support.write(folder .. "/child.lua", script)
    fault = folder .. "/fault.so"
    local status, _, err = support.shell(("${CC:-cc} -shared -fPIC -o %s tests/fault.c -ldl"):format(support.quote(fault)))
    if status ~= 0 then fault = nil print(err) end
  end)
  teardown(support.scratch_remove)

  for faults, said in pairs { ["pwrite:2:ENOSPC"] = "writing 1048576 bytes at byte %d+: No space left on device",
    ["pwrite:5:EIO"] = "writing 1048576 bytes at byte %d+: Input/output error",
    ["pread_back:2:EIO"] = "reading 1048576 bytes at byte %d+: Input/output error" } do
    it("say so, and give their memory back: " .. faults, function()
      if not fault then return pending "no C compiler" end
      local status, out, err = support.shell(("ASAN_OPTIONS=$ASAN_OPTIONS:verify_asan_link_order=0 ONN_FAULT=%s LD_PRELOAD=%s %s %s %s"):format(faults, support.quote(fault),
        support.quote(support.onn), support.quote(file), support.quote(folder)))
      assert.equal(0, status, err .. out)
      assert.matches("scratch file in .*: " .. said .. "\nwhole\n$", out)
    end)
  end
end)
