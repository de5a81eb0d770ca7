-- The scratch file: contents and places, what is held and for how long, and a disk that fails.
local core = require "onn.core.tensor"
local spills = require "onn.core.spill"
local support = require "tests.support"
local system = require "onn.core.system"

local quote, shell = support.quote, support.shell

local function used()
  collectgarbage()
  collectgarbage()
  return core.memory().used
end

local function filled(value, ...) return core.new("f32", { ... }):fill(value) end

describe("a scratch file", function()
  local folder, before
  setup(function() folder = support.scratch() end)
  teardown(support.scratch_remove)
  before_each(function() before = used() end)
  after_each(function()
    core.set_budget(math.huge)
    assert.equal(before, used())
  end)

  it("gives back every dtype and shape, bit for bit", function()
    local s = assert(spills.open(folder))
    local tickets, texts, at = {}, {}, 0
    for _, dtype in ipairs { "f32", "bf16", "f16", "i8", "u8", "i32", "i64", "bool" } do
      -- small, not whole pages, whole pages, and large with an odd end
      for _, shape in ipairs { {}, { 0, 3 }, { 7 }, { 4096 }, { 3, 5000 }, { 257, 1031 } } do
        at = at + 1
        local t = core.new("i32", { 600000 })
        t:narrow(1, 1, 500000):fill(at)
        t:narrow(1, 500001, 100000):fill(-7 * at)
        local n = 1
        for _, size in ipairs(shape) do n = n * size end
        local bytes = core.new(dtype, shape):bytes()
        t = core.from_data(t:data():sub(-bytes - 1, -2), dtype, shape)
        assert.equal(n, t:numel())
        texts[at] = t:data()
        tickets[at] = { assert(s:write(t)), dtype, shape }
        t:free()
      end
    end
    for pass = 1, 2 do
      for i = at, 1, -1 do
        if i > 1 then s:prefetch(tickets[i - 1][1]) end
        local t = assert(s:read(tickets[i][1]))
        assert.same({ tickets[i][2], tickets[i][3] }, { t:dtype(), t:shape() })
        assert.is_true(t:data() == texts[i], ("tensor %d, pass %d"):format(i, pass))
        t:free()
      end
      assert(s:wait())
    end
    assert.equal(0, #io.popen("ls -A " .. quote(folder)):read "*a", "the file has no name")
    s:close()
  end)

  it("takes views that lie anywhere", function()
    local s = assert(spills.open(folder))
    local whole = core.new("f32", { 2000, 100 })
    for i = 1, 2000 do whole:narrow(1, i, 1):fill(i) end
    local view = whole:narrow(1, 12, 1989)
    local last = whole:narrow(1, 1977, 24) -- begins on a page, ends with the storage
    local k, l = assert(s:write(view)), assert(s:write(last))
    assert(s:wait())
    local t, u = assert(s:read(k)), assert(s:read(l))
    assert.is_true(t:data() == view:data())
    assert.is_true(u:data() == last:data())
    for _, x in ipairs { whole, view, last, t, u } do x:free() end
    s:close()
  end)

  it("frees what is written, and counts what a prefetch takes", function()
    local s = assert(spills.open(folder))
    local base = used()
    local t = filled(3, 1024, 1024)
    local k = assert(s:write(t))
    t:free()
    assert(s:wait())
    assert.equal(base, used())
    assert.same({ 4194304, 0, 0, 4194304 }, { s:stats().written, s:stats().read, s:stats().held, s:stats().file })
    assert.is_true(s:prefetch(k))
    assert.is_false(s:prefetch(k), "it is on its way")
    assert.equal(base + 4194304, used())
    t = assert(s:read(k))
    assert.equal(base + 4194304, used())
    assert.equal(3, t:narrow(1, 1024, 1):narrow(2, 1024, 1):item())
    assert.equal(4194304, s:stats().read)
    core.set_budget(base + 5e6)
    assert.is_false(s:prefetch(k), "the budget does not allow it")
    assert.error_matches(function() s:read(k) end, "memory budget: 4194304 bytes asked")
    assert.equal(base + 4194304, used())
    t:free()
    t = assert(s:read(k))
    assert.equal(3, t:narrow(1, 1, 1):narrow(2, 1, 1):item())
    t:free()
    s:close()
  end)

  it("holds no more than its limit, and waits", function()
    local s = assert(spills.open(folder, 3e6))
    local base, tickets, most = used(), {}, 0
    for i = 1, 40 do
      local t = filled(i, 1024, 256)
      tickets[i] = assert(s:write(t))
      t:free()
      most = math.max(most, core.memory().used - base)
      assert.is_true(s:stats().held <= 3e6)
    end
    assert.is_true(most <= 3e6, most .. " bytes in memory")
    local large = filled(9, 1024, 1024) -- beyond the limit: alone
    local k = assert(s:write(large))
    assert.is_true(s:stats().held <= 4194304)
    large:free()
    for i = 40, 1, -1 do
      local t = assert(s:read(tickets[i]))
      assert.equal(i, t:narrow(1, 1024, 1):narrow(2, 256, 1):item())
      t:free()
    end
    large = assert(s:read(k))
    assert.equal(9, large:narrow(1, 1, 1):narrow(2, 1, 1):item())
    large:free()
    s:close()
  end)

  it("uses places again, also those forgotten while they are written", function()
    local s = assert(spills.open(folder))
    local tickets = {}
    local function write(i, pages)
      local t = filled(i, pages * 1024)
      tickets[i] = assert(s:write(t))
      t:free()
    end
    for i = 1, 20 do write(i, 10 + i) end
    assert(s:wait())
    local length = s:stats().file
    for i = 2, 20, 2 do s:forget(tickets[i]) end
    for i = 2, 18, 2 do write(i, 10 + i) end
    assert(s:wait())
    assert.equal(length - 30 * 4096, s:stats().file) -- the last place was free: the file ends before
    for i = 1, 19 do
      local t = assert(s:read(tickets[i]))
      assert.equal(i, t:narrow(1, 1, 1):item())
      assert.equal(i, t:narrow(1, t:numel(), 1):item())
      t:free()
      s:forget(tickets[i])
    end
    assert.equal(0, s:stats().file)
    for round = 1, 200 do -- some are waiting, one is being written
      for i = 1, 5 do write(i, 300) end
      for i = 5, 1, -1 do s:forget(tickets[i]) end
      if round % 50 == 0 then
        assert(s:wait())
        assert.equal(0, s:stats().file)
      end
      assert.is_true(s:stats().file <= 300 * 4096 * 6)
    end
    for i = 1, 5 do write(i, 300) end
    assert(s:wait())
    for i = 1, 5 do s:prefetch(tickets[i]) end
    for i = 1, 5 do s:forget(tickets[i]) end
    assert(s:wait())
    assert.same({ 0, 0 }, { s:stats().file, s:stats().held })
    s:close()
  end)

  it("ends with work under way, and lets tickets outlive it", function()
    for _ = 1, 20 do
      local s = assert(spills.open(folder))
      local tickets = {}
      for i = 1, 8 do
        local t = filled(i, 512, 1024)
        tickets[i] = assert(s:write(t))
        t:free()
      end
      s:prefetch(tickets[1])
      s:close()
      s:close()
      assert.error_matches(function() s:read(tickets[1]) end, "has been closed")
    end
    local s, t = assert(spills.open(folder)), filled(1, 512, 1024)
    assert(s:write(t))
    t:free()
  end)

  it("refuses what makes no sense", function()
    local s, other = assert(spills.open(folder)), assert(spills.open(folder))
    local t = filled(1, 8, 8)
    local k = assert(s:write(t))
    assert.error_matches(function() s:write(t:transpose()) end, "only a contiguous tensor")
    assert.error_matches(function() other:read(k) end, "another scratch file's")
    s:forget(k)
    assert.error_matches(function() s:read(k) end, "has been forgotten")
    t:free()
    assert.error_matches(function() s:write(t) end, "has been freed")
    s:close()
    other:close()
    local none, message, code = spills.open(folder .. "/absent")
    assert.same({ nil, folder .. "/absent: making a scratch file: No such file or directory", "io" }, { none, message, code })
  end)
end)

-- A child that writes and reads n tensors of 1 MB. It says what failed; whatever that is, it ends with all tensors as they were.
local script = [[
local core, spills = require "onn.core.tensor", require "onn.core.spill"
local s = assert(spills.open(arg[1]))
local before, kept, tickets = core.memory().used, {}, {}
local function try(f, ...)
  for _ = 1, 100 do
    local value, message, code = s[f](s, ...)
    if value then return value end
    print(f, message, code)
  end
  return nil
end
for i = 1, tonumber(arg[2]) do
  local t = core.new("f32", { 512, 512 }):fill(i)
  tickets[i] = try("write", t) or t
  if tickets[i] ~= t then t:free() end
end
try "wait"
for i = 1, #tickets do
  local t = core.is_tensor(tickets[i]) and tickets[i] or try("read", tickets[i])
  if t then
    assert(t:narrow(1, 1, 1):narrow(2, 1, 1):item() == i and t:narrow(1, 512, 1):narrow(2, 512, 1):item() == i, "tensor " .. i)
    t:free()
  end
  if not core.is_tensor(tickets[i]) then s:forget(tickets[i]) end
end
assert(s:wait())
collectgarbage() -- views
collectgarbage()
assert(core.memory().used == before, "memory is not given back")
s:close()
print "whole"
]]

describe("a scratch file on a disk that fails", function()
  local folder, fault, file
  setup(function()
    folder = support.scratch()
    file = support.write(folder .. "/child.lua", script)
    fault = folder .. "/fault.so"
    local status, _, err = shell(("${CC:-cc} -shared -fPIC -o %s tests/fault.c -ldl"):format(quote(fault)))
    if status ~= 0 then fault = nil print(err) end
  end)
  teardown(support.scratch_remove)

  local function child(faults, n, directory)
    local status, out, err = shell(("ASAN_OPTIONS=$ASAN_OPTIONS:verify_asan_link_order=0 ONN_FAULT=%s LD_PRELOAD=%s %s %s %s %d"):format(faults,
      quote(fault), quote(support.onn), quote(file), quote(directory or folder), n or 8))
    assert.equal(0, status, err .. out)
    assert.matches("whole\n$", out)
    return out:gsub("whole\n$", "")
  end

  it("says what a full one refused, once, and loses nothing", function()
    if not fault then return pending "no C compiler" end
    local said = "\tscratch file in " .. folder:gsub("%p", "%%%0") .. ": writing 1048576 bytes at byte %d+: No space left on device\tio\n"
    local out = child "pwrite:8:ENOSPC" -- the last write: nothing else is asked of the disk
    assert.matches("^wait" .. said .. "$", out)
    out = child "pwrite:3:ENOSPC"
    assert.matches("^%l+" .. said, out)
    assert.is_nil(out:find "read")
  end)

  it("says what a broken one refused", function()
    if not fault then return pending "no C compiler" end
    local out = child "pwrite:8:EIO"
    assert.matches("^wait\tscratch file in .*: writing 1048576 bytes at byte 7340032: Input/output error\tio\n$", out)
    out = child("pread_back:2:EIO", 2)
    assert.matches("^read\tscratch file in .*: reading 1048576 bytes at byte 1048576: Input/output error\tio\n", out)
  end)

  it("says it whole, however long the directory's name is", function()
    if not fault then return pending "no C compiler" end
    local deep = ("%s/%s/%s"):format(folder, ("a"):rep(200), ("b"):rep(200))
    assert(system.mkdir_p(deep))
    local said = "\tscratch file in " .. deep:gsub("%p", "%%%0")
    assert.matches("^wait" .. said .. ": writing 1048576 bytes at byte 0: No space left on device\tio\n$", (child("pwrite:1:ENOSPC", 1, deep)))
    assert.matches("^read" .. said .. ": reading 1048576 bytes at byte 0: Input/output error\tio\n", (child("pread_back:1:EIO", 1, deep)))
  end)

  it("goes on after short and interrupted calls", function()
    if not fault then return pending "no C compiler" end
    for _, faults in ipairs { "pwrite:2:short", "pread_back:3:short", "pwrite:2:EINTR", "pread_back:3:EINTR" } do assert.equal("", child(faults)) end
  end)

  it("keeps what a small file system cannot take", function()
    local mounted = folder .. "/small"
    local command = ("mkdir -p %s && unshare -rm sh -c 'mount -t tmpfs -o size=5m none %s && exec \"$0\" \"$@\"'"):format(quote(mounted), mounted)
    if shell(command .. " true") ~= 0 then return pending "no file system can be mounted here" end
    local status, out, err = shell(("%s %s %s %s 12"):format(command, quote(support.onn), quote(file), quote(mounted)))
    assert.equal(0, status, err .. out)
    assert.matches("scratch file in .*/small: writing %d+ bytes at byte %d+: No space left on device\tio\n.*whole\n$", out)
  end)
end)
