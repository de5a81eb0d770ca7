-- The frozen-prefix cache: what it knows and by which name, memory first, files that are damaged or another's, a full disk.
local core = require "onn.core.tensor"
local hash = require "onn.core.hash"
local Model = require "onn.model"
local prefix = require "onn.prefix"
local support = require "tests.support"
local system = require "onn.core.system"
local tiny = require "tests.tiny"

local WIDTH = 64

local function used()
  collectgarbage()
  collectgarbage()
  return core.memory().used
end

-- batch { {1, 2, 3}, {4, 5} }: those sequences one after another
local function batch(sequences)
  local ids, starts, longest = {}, { 0 }, 0
  for _, sequence in ipairs(sequences) do
    for _, id in ipairs(sequence) do ids[#ids + 1] = id end
    starts[#starts + 1], longest = #ids, math.max(longest, #sequence)
  end
  return { ids = core.from_table(ids, "i32"), starts = core.from_table(starts, "i32"), longest = longest, tokens = #ids }
end

-- What the stages would give: row t of a sequence is a function of its first t ids alone.
local function computed(b)
  local out, ids, starts = core.new("f32", { b.ids:size(1), WIDTH }), b.ids:totable(), b.starts:totable()
  for s = 1, #starts - 1 do
    local sum = 0
    for t = starts[s] + 1, starts[s + 1] do
      sum = (sum * 31 + ids[t]) % 65537
      out:narrow(1, t, 1):fill(sum / 7)
    end
  end
  return out
end

local function sequence(n, length)
  local ids = {}
  for i = 1, length do ids[i] = (n * 7919 + i * i * 13) % 1000 end
  return ids
end

local function some(from, upto, length)
  local list = {}
  for n = from, upto do list[#list + 1] = sequence(n, (length or 10) + n % 5) end
  return batch(list)
end

local function put(p, b)
  local hidden = computed(b)
  p:put(b, hidden)
  hidden:free()
end

local function knows(p, b)
  local hidden = p:get(b)
  if not hidden then return false end
  assert.is_true(hidden:data() == computed(b):data())
  assert.same({ "f32", b.tokens, WIDTH }, { hidden:dtype(), hidden:size(1), hidden:size(2) })
  hidden:free()
  return true
end

describe("the frozen-prefix cache", function()
  local folder, before, heard, directory
  local function open(options)
    options.key, options.note = options.key or "key", function(text) heard[#heard + 1] = text end
    return prefix.open(options)
  end
  before_each(function()
    folder, before, heard = support.scratch(), used(), {}
    directory = folder .. "/cache"
  end)
  after_each(function()
    core.set_budget(math.huge)
    assert.equal(before, used())
  end)
  teardown(support.scratch_remove)

  it("knows a sequence by its ids, in any order and packing", function()
    local p = open { quota = 1e6 }
    local a, b, c = sequence(1, 9), sequence(2, 20), sequence(3, 1)
    assert.is_false(p:knows(batch { a }))
    assert.is_false(knows(p, batch { a, b }))
    put(p, batch { a, b })
    put(p, batch { c })
    for _, list in ipairs { { a }, { b, a }, { c, a, c, b }, { b, b } } do assert.is_true(knows(p, batch(list))) end
    local longer, other = sequence(1, 10), sequence(1, 9)
    other[9] = other[9] + 1
    for _, list in ipairs { { a, longer }, { other }, { sequence(2, 19) } } do assert.is_false(knows(p, batch(list))) end
    local joined = {}
    for _, id in ipairs(a) do joined[#joined + 1] = id end
    for _, id in ipairs(b) do joined[#joined + 1] = id end
    assert.is_false(knows(p, batch { joined }))
    assert.same({ 3, 9, 7 }, { p:stats().sequences, p:stats().hits, p:stats().misses })
    assert.equal(30 * WIDTH * 4, p:stats().ram)
    assert.same({ true, false, 9 }, { p:knows(batch { b, c, a }), p:knows(batch { b, other }), p:stats().hits })
    p:close()
    assert.same({}, heard)
  end)

  it("tells angles apart that depend on the longest sequence", function()
    local regime = { regime_of = function(_, length) return length > 12 and 1 or 0 end }
    local p = open { quota = 1e6, angles = regime }
    local a, b = sequence(1, 9), sequence(2, 20)
    put(p, batch { a, b })
    assert.is_true(knows(p, batch { a, b }))
    assert.is_false(knows(p, batch { a }))
    put(p, batch { a })
    assert.is_true(knows(p, batch { a }))
    p:close()
  end)

  it("keeps to its memory, then says so, or goes on in files", function()
    local p = open { quota = 40000 }
    for n = 1, 30 do put(p, some(n, n)) end
    assert.is_true(p:stats().ram <= 40000 and p:stats().ram > 30000)
    assert.equal(1, #heard)
    assert.matches("the 40.0 KB of memory for it are used; what is not stored is computed again in each epoch", heard[1])
    assert.is_true(knows(p, some(1, 1)))
    assert.is_false(knows(p, some(30, 30)))
    p:close()
    assert.equal(before, used())
    heard = {}
    p = open { quota = 40000, directory = directory }
    local most = 0
    for n = 1, 60, 2 do
      put(p, some(n, n + 1))
      most = math.max(most, p:stats().ram)
    end
    assert.is_true(most <= 40000, most)
    assert.is_true(used() - before <= 45000 + 4096, used() - before)
    local files = system.list(directory)
    assert.is_true(#files >= 2 and #files <= 30)
    for n = 60, 1, -3 do assert.is_true(knows(p, some(n, n))) end
    assert.is_true(knows(p, some(1, 60)))
    local bytes = 0
    for _, name in ipairs(files) do bytes = bytes + system.stat(directory .. "/" .. name).size end
    assert.equal(bytes, p:stats().disk)
    p:close(true)
    assert.is_false(system.exists(directory))
    assert.same({}, heard)
  end)

  it("finds what an earlier run left, and reads it", function()
    local p = open { quota = 0, directory = directory }
    for n = 1, 20, 4 do put(p, some(n, n + 3)) end
    assert.equal(5, #system.list(directory))
    p:close()
    support.write(directory .. "/prefix-00009.safetensors.part-a1b2c3", "half")
    support.write(directory .. "/other.safetensors", "not ours")
    p = open { quota = 0, directory = directory }
    assert.equal(20, p:stats().sequences)
    assert.is_true(knows(p, some(3, 18)))
    put(p, some(1, 22)) -- two are new
    assert.equal(22, p:stats().sequences)
    p:close()
    assert.is_false(system.exists(directory .. "/prefix-00009.safetensors.part-a1b2c3"))
    p = open { quota = 0, directory = directory, key = "another" }
    assert.same({ 0, 0 }, { p:stats().sequences, p:stats().disk })
    assert.same({ "other.safetensors" }, system.list(directory))
    assert.equal(1, #heard)
    assert.matches("cache: removed 6 files prefix%-%*.safetensors that are another model's", heard[1])
    p:close(true)
    assert.same({ "other.safetensors" }, system.list(directory))
  end)

  it("lets an earlier run's files lie in its half of the disk", function()
    local p = open { quota = 0, directory = directory }
    for n = 1, 10 do put(p, some(n, n)) end
    local there = p:stats().disk
    p:close()
    local real = system.free_disk
    system.free_disk = function() return there + 8000 end
    p = open { quota = 0, directory = directory }
    system.free_disk = real
    for n = 11, 20 do put(p, some(n, n)) end
    assert.is_true(p:stats().disk > there and p:stats().disk <= there + 4000, p:stats().disk - there)
    assert.equal(1, #heard)
    p:close(true)
  end)

  it("writes what waits when it is closed", function()
    local p = open { quota = 8000, directory = directory }
    for n = 1, 3 do put(p, some(n, n)) end
    local waiting = p:stats().sequences
    p:close()
    p = open { quota = 8000, directory = directory }
    assert.is_true(p:stats().sequences > 0 and p:stats().sequences <= waiting)
    p:close(true)
  end)

  it("makes anew what is damaged, and says which", function()
    local function damaged(change, said)
      heard = {}
      local p = open { quota = 0, directory = directory }
      put(p, some(1, 4))
      put(p, some(5, 8))
      p:close()
      local path = directory .. "/prefix-00001.safetensors"
      support.write(path, change(support.read(path)))
      p = open { quota = 0, directory = directory }
      assert.is_false(knows(p, some(1, 4)))
      assert.is_false(p:knows(some(1, 4)))
      assert.is_false(system.exists(path))
      assert.is_true(knows(p, some(5, 8)), "the other file")
      put(p, some(1, 4))
      assert.is_true(knows(p, some(1, 8)))
      p:close(true)
      assert.equal(1, #heard)
      assert.matches("prefix%-00001.safetensors: " .. said .. ".*; removed, it is made anew$", heard[1])
    end
    local function flip(text, at) return text:sub(1, at - 1) .. string.char(bit.bxor(text:byte(at), 4)) .. text:sub(at + 1) end
    damaged(function(text) return flip(text, #text - 5) end, "sequence %x+ does not have its checksum")
    damaged(function(text) return text:sub(1, -2) end, "")
    damaged(function(text) return text .. " " end, "")
    damaged(function() return "" end, "")
    damaged(function(text) return text:sub(1, 7) end, "")
    damaged(function(text) return flip(text, 1) end, "") -- the header's length
  end)

  it("takes no file whose header has changed for what it was", function()
    local p = open { quota = 0, directory = directory }
    put(p, some(1, 2))
    p:close()
    local path = directory .. "/prefix-00001.safetensors"
    local whole = support.read(path)
    for at = 9, whole:find("]}", 1, true) + 200, 3 do
      heard = {}
      support.write(path, whole:sub(1, at - 1) .. string.char(bit.bxor(whole:byte(at), 1)) .. whole:sub(at + 1))
      p = open { quota = 0, directory = directory }
      knows(p, some(1, 2)) -- whatever it gives is right
      p:close(true)
    end
  end)

  it("falls back aloud where the disk is full or its share used", function()
    local p = open { quota = 20000, directory = directory, disk = 30000 }
    for n = 1, 30 do put(p, some(n, n)) end
    assert.equal(1, #heard)
    assert.matches("cache: the 30.0 KB that may lie here are used; what is not stored is computed again", heard[1])
    assert.is_true(p:stats().disk <= 30000 and p:stats().ram <= 20000)
    local n = p:stats().sequences
    for k = 1, n do assert.is_true(knows(p, some(k, k))) end
    assert.is_false(knows(p, some(30, 30)))
    p:close(true)
    heard = {}
    support.write(folder .. "/file", "")
    p = open { quota = 1e6, directory = folder .. "/file/cache" }
    assert.equal(1, #heard)
    assert.matches("Not a directory; only memory is used", heard[1])
    put(p, some(1, 4))
    assert.is_true(knows(p, some(1, 4)))
    p:close(true)
  end)

  it("has a key that differs where the values do", function()
    local path = tiny.model(folder .. "/model")
    local function key(lowest, dtype)
      local model = assert(Model.open(path, { dtype = dtype }))
      local text = prefix.key(model, lowest)
      model:close()
      return text
    end
    local usual = key(3, "f32")
    assert.equal(usual, key(3, "f32"))
    assert.matches((core.backend()):gsub("%p", "%%%0"), usual)
    local seen = { [usual] = true }
    local function differs(text)
      assert.is_nil(seen[text], text)
      seen[text] = true
    end
    differs(key(2, "f32"))
    differs(key(3, "bf16"))
    local config = support.read(path .. "/config.json")
    support.write(path .. "/config.json", (config:gsub('"rope_theta": *%d+', '"rope_theta":20000'):gsub("{", '{"rms_norm_eps":0.001,', 1)))
    differs(key(3, "f32"))
    assert(os.execute(("touch -d '2001-01-01' %s/model.safetensors"):format(support.quote(path))) == 0)
    differs(key(3, "f32"))
  end)

  it("hashes sequences of ids, and refuses starts that are none", function()
    local ids = core.from_table({ 1, 2, 3, 1, 2, 3 }, "i32")
    local names = hash.sequences(ids, core.from_table({ 0, 3, 3, 6 }, "i32"))
    assert.equal(3, #names)
    assert.equal(names[1], names[3])
    assert.matches("^%x+$", names[1])
    assert.equal(32, #names[1])
    assert.equal(hash.text "", names[2])
    assert.equal(hash.data(core.from_table({ 1, 2, 3 }, "i32")), names[1])
    assert.are_not.equal(names[1], hash.sequences(ids, core.from_table({ 0, 3 }, "i32"), 1)[1])
    for _, starts in ipairs { { 0, 7 }, { 0, 4, 3 }, { -1, 3 } } do
      assert.error_matches(function() hash.sequences(ids, core.from_table(starts, "i32")) end, "starts are not ascending numbers of the 6 tokens")
    end
    assert.same({}, hash.sequences(ids, core.from_table({ 0 }, "i32")))
    assert.error_matches(function() hash.sequences(ids:to "i64", ids) end, "an i32 tensor of one dimension")
  end)

  it("is no reason to go over the budget", function()
    local p = open { quota = 1e9 }
    put(p, some(1, 4))
    local b = some(5, 8, 4000)
    local hidden = computed(b)
    core.set_budget(used() + 1000)
    p:put(b, hidden)
    core.set_budget(math.huge)
    hidden:free()
    assert.equal(1, #heard)
    assert.matches("memory budget: .*; what is not stored is computed again", heard[1])
    assert.is_true(knows(p, some(1, 4)))
    p:close()
  end)
end)

describe("the frozen-prefix cache on a disk that fails", function()
  teardown(support.scratch_remove)
  it("goes on with what it has", function()
    if os.getenv "ASAN_OPTIONS" then return pending "a preloaded library does not come before AddressSanitizer's" end
    local folder = support.scratch()
    local quote, fault = support.quote, folder .. "/fault.so"
    local status, _, err = support.shell(("${CC:-cc} -shared -fPIC -o %s tests/fault.c -ldl"):format(quote(fault)))
    if status ~= 0 then return pending("no C compiler: " .. err) end
    local file = support.write(folder .. "/child.lua", [[
local core, prefix = require "onn.core.tensor", require "onn.prefix"
local p = prefix.open { key = "k", quota = 0, directory = arg[1], note = print }
local function batch(n) return { ids = core.from_table({ n, n + 1, n + 2 }, "i32"), starts = core.from_table({ 0, 3 }, "i32"), longest = 3 } end
for n = 1, 10 do p:put(batch(n), core.new("f32", { 3, 50000 }):fill(n)) end
for n = 1, 10 do
  local t = p:get(batch(n))
  if t then assert(t:narrow(1, 3, 1):narrow(2, 50000, 1):item() == n) end
  io.write(t and "+" or "-")
end
print()
p:close(true)
]])
    for action, said in pairs { ENOSPC = "No space left on device", EIO = "Input/output error" } do
      local out
      local cache = folder .. "/cache" .. action
      status, out, err = support.shell(("ONN_FAULT=write:9:%s LD_PRELOAD=%s %s %s %s"):format(action, quote(fault), quote(support.onn), quote(file),
        quote(cache)))
      assert.equal(0, status, err .. out)
      assert.matches("^" .. cache:gsub("%p", "%%%0") .. "/prefix%-%d+.safetensors: writing: " .. said .. "; what is not stored [^\n]*\n%+%+%++%-+\n$", out)
      assert.is_false(system.exists(cache))
    end
  end)
end)
