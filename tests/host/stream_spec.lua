-- The chunk ring: what its tensors hold, which units it loads, and what happens when a file breaks under it.
local stores = require "onn.core.store"
local streams = require "onn.core.stream"
local support = require "tests.support"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local folder, model, names

-- Eight bytes of a length, least significant first.
local function word(n)
  local bytes = {}
  for i = 1, 8 do bytes[i], n = string.char(n % 256), math.floor(n / 256) end
  return table.concat(bytes)
end

-- n bytes that differ from place to place and from seed to seed.
local function noise(n, seed)
  local bytes = {}
  for i = 1, n do
    seed = (seed * 1103515245 + 12345) % 2147483648
    bytes[i] = string.char(math.floor(seed / 65536) % 256)
  end
  return table.concat(bytes)
end

-- write_file(path, { {name, dtype, shape text, bytes}, ... }): tensors lie in this order, at any offset
local function write_file(path, list)
  local header, data, at = {}, {}, 0
  for i, t in ipairs(list) do
    header[i] = ('"%s":{"dtype":"%s","shape":[%s],"data_offsets":[%d,%d]}'):format(t[1], t[2], t[3], at, at + #t[4])
    data[i], at = t[4], at + #t[4]
  end
  local text = "{" .. table.concat(header, ",") .. "}"
  return support.write(path, word(#text) .. text .. table.concat(data))
end

-- Two shards with every dtype; the second begins with 3 bytes, so that all behind is at odd offsets.
local function make_model(path)
  assert(system.mkdir_p(path))
  local first, second = {}, { { "odd", "U8", "3", "\1\2\3" } }
  for i = 1, 6 do first[i] = { "layer" .. i, "F32", "64,48", noise(64 * 48 * 4, i) } end
  for i, t in ipairs { { "BF16", 2 }, { "F16", 2 }, { "I8", 1 }, { "U8", 1 }, { "I32", 4 }, { "I64", 8 }, { "BOOL", 1 }, { "F32", 4 } } do
    second[#second + 1] = { "kind." .. t[1], t[1], "40,25", t[1] == "BOOL" and ("\0\1\1\0\1"):rep(200) or noise(1000 * t[2], 50 + i) }
  end
  second[#second + 1] = { "none", "F32", "0,4", "" }
  second[#second + 1] = { "single", "F32", "", "\0\0\128\63" }
  second[#second + 1] = { "large", "BF16", "700,512", noise(700 * 512 * 2, 99) }
  second[#second + 1] = { "tail", "BF16", "5", noise(10, 7) }
  write_file(path .. "/a.safetensors", first)
  write_file(path .. "/b.safetensors", second)
  local map = {}
  for file, list in pairs { a = first, b = second } do
    for _, t in ipairs(list) do map[#map + 1] = ('"%s":"%s.safetensors"'):format(t[1], file) end
  end
  support.write(path .. "/model.safetensors.index.json", '{"weight_map":{' .. table.concat(map, ",") .. "}}")
  return path
end

local function layers(n)
  local units = {}
  for i = 1, n do units[i] = { { name = "layer" .. i } } end
  return units
end

local function opened(options)
  local store = assert(stores.open(model))
  local s = assert(streams.open(store, options))
  store:close() -- the stream has its own hold
  return s
end

-- Waits until the reader has nothing left to do.
local function settle(s)
  while not s:stats().idle do system.sleep(0.0002) end
end

setup(function()
  folder = support.scratch()
  model = make_model(folder .. "/model")
  local store = assert(stores.open(model))
  names = store:names()
  store:close()
end)
teardown(support.scratch_remove)

describe("a stream", function()
  for _, direct in ipairs { true, false } do
    it("gives what the store reads, for every dtype and offset, direct " .. tostring(direct), function()
      local store = assert(stores.open(model))
      local units = { {}, {}, {} }
      for i, name in ipairs(names) do table.insert(units[i % 3 + 1], { name = name }) end
      for first = 0, 600, 100 do
        units[#units + 1] = { { name = "large", first = first, rows = 100 }, { name = "layer1", first = 63, rows = 1 },
          { name = "layer2", first = 5, rows = 0 } }
      end
      for _, slots in ipairs { 1, 2, #units } do
        local s = assert(streams.open(store, { units = units, slots = slots, direct = direct }))
        local order = {}
        for u = 1, #units do order[u] = u end
        s:schedule(order)
        for round = 1, 2 do
          for u = 1, #units do
            assert(s:acquire(u))
            for i, piece in ipairs(units[u]) do
              local t, whole = s:tensors(u)[i], store:read(piece.name)
              if piece.rows then whole = whole:narrow(1, piece.first + 1, piece.rows) end
              assert.equal(whole:describe(), t:describe())
              assert.is_true(whole:contiguous():data() == t:data(), ("%s, slots %d, round %d"):format(piece.name, slots, round))
            end
            s:release(u)
          end
        end
        s:close()
      end
      store:close()
    end)
  end

  it("loads what its simulation says", function()
    local schedules = { { 1, 2, 3, 4, 5, 6 }, { 1, 2, 3, 4, 5, 6, 6, 5, 4, 3, 2, 1 }, { 1, 2, 1, 3, 1, 4, 6, 6 } }
    for _, order in ipairs(schedules) do
      for slots = 1, 7 do
        local s = opened { units = layers(6), slots = slots }
        s:schedule(order)
        local before, after = 0, 0
        for round = 1, 3 do
          for _, u in ipairs(order) do
            settle(s)
            assert(s:acquire(u))
            settle(s)
            after = s:stats().loads
            s:release(u)
          end
          assert.equal((streams.simulate { units = 6, slots = slots, schedule = order, rounds = round }), after - before)
          before = after
        end
        s:close()
      end
    end
  end)

  it("reads each unit once where all fit, and keeps what fits of a cycle", function()
    local cycle, zigzag = {}, {}
    for u = 1, 10 do cycle[u], zigzag[u], zigzag[21 - u] = u, u, u end
    assert.equal(0, (streams.simulate { units = 10, slots = 10, schedule = cycle }))
    assert.equal(10, (streams.simulate { units = 10, slots = 10, schedule = cycle, rounds = 1 }))
    local loads = streams.simulate { units = 10, slots = 6, schedule = cycle }
    assert.is_true(loads <= 6, loads) -- 4 do not fit, and those that come and go share a slot or two
    loads = streams.simulate { units = 10, slots = 4, schedule = zigzag }
    assert.is_true(loads <= 2 * (10 - 3), loads) -- what lies at the turning points is used again
  end)

  it("binds its tensors while they are acquired, and views with them", function()
    local s = opened { units = layers(6), slots = 2 }
    local t = s:tensors(1)[1]
    assert.equal(t, s:tensors(1)[1])
    assert.same({ 64, 48 }, t:shape())
    assert.error_matches(function() t:data() end, "not in memory: its unit is not acquired")
    local view = t:narrow(1, 2, 3)
    assert.error_matches(function() view:clone() end, "not in memory")
    assert(s:acquire(1))
    local wanted, part = t:data(), view:contiguous():data()
    assert.equal(wanted:sub(48 * 4 + 1, 48 * 4 * 4), part)
    assert(s:acquire(1))
    s:release(1)
    assert.equal(wanted, t:data()) -- uses nest
    local copy = t:clone()
    s:release(1)
    assert.error_matches(function() view:data() end, "not in memory")
    assert.error_matches(function() s:release(1) end, "unit 1 of the stream is not acquired")
    for u = 2, 4 do
      assert(s:acquire(u))
      s:release(u)
    end
    assert(s:acquire(4))
    assert(s:acquire(1)) -- perhaps in the other slot now
    assert.equal(wanted, t:data())
    assert.equal(part, view:data())
    assert.equal(wanted, copy:data())
    local none, message, code = s:acquire(2)
    assert.is_nil(none)
    assert.matches("all 2 slots of the stream are acquired", message)
    assert.equal("argument", code)
    s:close()
    assert.error_matches(function() t:data() end, "not in memory")
    assert.error_matches(function() s:acquire(1) end, "closed")
    assert.equal(wanted, copy:data())
  end)

  it("holds pieces that overlap, and one twice", function()
    local store = assert(stores.open(model))
    local unit = { { name = "large", first = 25, rows = 50 }, { name = "large" }, { name = "large", first = 0, rows = 50 },
      { name = "kind.F32" }, { name = "large", first = 25, rows = 50 }, { name = "kind.F32", first = 1, rows = 2 } }
    local s = assert(streams.open(store, { units = { unit }, slots = 1 }))
    assert(s:acquire(1))
    for i, piece in ipairs(unit) do
      local whole = store:read(piece.name)
      local part = piece.rows and whole:narrow(1, piece.first + 1, piece.rows) or whole
      assert.is_true(part:contiguous():data() == s:tensors(1)[i]:data(), i)
    end
    s:close()
    store:close()
  end)

  it("is closed when nobody holds it, and leaves nothing behind", function()
    collectgarbage()
    collectgarbage()
    local before = tensors.memory().used
    local function descriptors() return #system.list "/proc/self/fd" end
    local open = descriptors()
    for slots = 1, 3 do
      local s = opened { units = layers(6), slots = slots }
      s:schedule { 1, 2, 3, 4, 5, 6 }
      assert(s:acquire(2))
    end
    collectgarbage()
    collectgarbage()
    assert.equal(before, tensors.memory().used)
    assert.equal(open, descriptors())
  end)

  it("takes up a new schedule with what is in its slots, and serves what is not on it", function()
    local s = opened { units = layers(6), slots = 3 }
    s:schedule { 1, 2, 3 }
    settle(s)
    assert.equal(3, s:stats().loads)
    s:schedule { 3, 2, 4 }
    settle(s)
    assert.equal(4, s:stats().loads) -- 1 went, for 4
    for _, u in ipairs { 3, 2, 4 } do
      assert(s:acquire(u))
      s:release(u)
    end
    settle(s)
    assert.equal(4, s:stats().loads)
    assert.equal(3, s:stats().hits)
    assert(s:acquire(6))
    assert.equal(5, s:stats().loads)
    assert.is_true(s:stats().waited > 0 and s:stats().reading > 0)
    assert.equal(5 * 64 * 48 * 4, s:stats().bytes)
    s:schedule {}
    assert(s:acquire(1))
    s:release(1)
    assert.error_matches(function() s:schedule { 1, 7 } end, "no unit 7")
    assert.error_matches(function() s:acquire(0) end, "no unit 0")
    s:close()
  end)

  it("reads when asked only, without prefetch", function()
    local s = opened { units = layers(4), slots = 2, prefetch = false }
    s:schedule { 1, 2, 3, 4 }
    settle(s)
    assert.equal(0, s:stats().loads)
    for _ = 1, 2 do
      for u = 1, 4 do
        assert(s:acquire(u))
        assert.is_true(s:stats().idle)
        s:release(u)
      end
    end
    assert.is_true(s:stats().loads <= 8 and s:stats().loads >= 6, s:stats().loads)
    s:close()
  end)

  it("keeps its loads for a trace when asked to", function()
    local s = opened { units = layers(3), slots = 3 }
    local began = system.now()
    s:schedule { 1, 2 }
    settle(s)
    assert.same({}, (s:events(true)))
    s:schedule { 3 }
    settle(s)
    local events, dropped = s:events()
    assert.equal(1, #events)
    assert.equal(0, dropped)
    assert.equal(3, events[1][1])
    assert.is_true(began <= events[1][2] and events[1][2] <= events[1][3] and events[1][3] <= system.now())
    assert.equal(64 * 48 * 4, events[1][4])
    assert.same({}, (s:events(false)))
    s:close()
  end)

  it("counts its slots in the memory budget", function()
    collectgarbage()
    collectgarbage()
    local store = assert(stores.open(model))
    local units = { { { name = "large" } }, { { name = "layer1" } } }
    local bytes, before = streams.bytes(store, units), tensors.memory().used
    assert.is_true(bytes >= 700 * 1024 and bytes <= 700 * 1024 + 8192 and bytes % 4096 == 0, bytes)
    local s = assert(streams.open(store, { units = units, slots = 9 })) -- as many as there are units
    assert.equal(2, s:stats().slots)
    assert.equal(bytes, s:stats().slot_bytes)
    local used = tensors.memory().used - before
    assert.is_true(used >= 2 * bytes and used < 2 * bytes + 65536, used)
    s:close()
    assert.equal(before, tensors.memory().used)
    tensors.set_budget(before + bytes)
    local none, message, code = streams.open(store, { units = units, slots = 2 })
    tensors.set_budget(math.huge)
    assert.is_nil(none)
    assert.matches("memory budget", message)
    assert.equal("memory", code)
    assert.equal(before, tensors.memory().used)
    store:close()
  end)

  it("refuses units that there are not", function()
    local store = assert(stores.open(model))
    local function refused(piece, pattern, code)
      local none, message, got = streams.open(store, { units = { { piece } }, slots = 1 })
      assert.is_nil(none)
      assert.matches(pattern, message)
      assert.equal(code, got)
    end
    refused({ name = "absent" }, "no tensor 'absent'", "format")
    refused({ name = "layer1", first = 60, rows = 5 }, "'layer1' has 64 rows, not 5 from row 60", "argument")
    refused({ name = "single", rows = 1 }, "'single' is a single number", "argument")
    assert.error_matches(function() streams.open(store, { units = {}, slots = 1 }) end, "a list of 1 to")
    assert.error_matches(function() streams.open(store, { units = layers(1), slots = 0 }) end, "slots")
    assert.error_matches(function() streams.open(store, { units = layers(1), slots = 1, slot = 2 }) end, "unknown option 'slot'")
    assert.error_matches(function() streams.open(store, { units = { { { first = 1 } } }, slots = 1 }) end, "without a name")
    store:close()
    assert.error_matches(function() streams.open(store, { units = layers(1), slots = 1 }) end, "closed")
  end)

  it("tells of a file that was cut or written to, and goes on with the others", function()
    for _, how in ipairs { "truncate -s -100", "touch -d '2001-01-01'" } do
      local path = make_model(folder .. "/breaking")
      local store = assert(stores.open(path))
      local s = assert(streams.open(store, { units = { { { name = "layer1" } }, { { name = "large" } }, { { name = "layer2" } },
        { { name = "layer3" } } }, slots = 2 }))
      s:schedule { 1, 2, 3 }
      assert(s:acquire(1))
      settle(s)
      s:release(1)
      s:schedule { 1 }
      settle(s)
      assert(s:acquire(3)) -- instead of 2
      assert(s:acquire(1))
      s:release(1)
      s:release(3)
      assert.equal(0, os.execute(how .. " " .. support.quote(path .. "/b.safetensors")))
      s:schedule { 1, 2, 3 }
      settle(s)
      for _ = 1, 2 do -- a later try is a new one
        local none, message, code = s:acquire(2)
        assert.is_nil(none)
        assert.matches("/breaking/b%.safetensors: the file has changed since it was opened.*'large'", message)
        assert.equal("io", code)
        assert(s:acquire(3))
        s:release(3)
      end
      assert.error_matches(function() s:tensors(2)[1]:data() end, "not in memory")
      s:schedule { 1, 2 }
      settle(s) -- 2 has failed, and nobody asks for it
      local loads = s:stats().loads
      s:schedule { 4, 1 }
      settle(s)
      assert.equal(loads + 1, s:stats().loads)
      assert(s:acquire(1))
      s:close() -- while a unit is acquired
      store:close()
    end
  end)

  it("delivers what the disk refuses, once mended reads again, and takes short and interrupted reads for what they are", function()
    local fault = folder .. "/fault.so"
    local status, _, err = support.shell(("${CC:-cc} -shared -fPIC -o %s tests/fault.c -ldl"):format(support.quote(fault)))
    assert.equal(0, status, err)
    local script = support.write(folder .. "/broken.lua", [[
      local stores, streams = require "onn.core.store", require "onn.core.stream"
      local store = assert(stores.open(arg[1]))
      if not arg[2] then return end
      local s = assert(streams.open(store, { units = { { { name = "layer1" } }, { { name = "large" } } }, slots = 1, direct = arg[2] == "true" }))
      for _ = 1, 2 do
        for u = 1, 2 do
          local ok, message, code = s:acquire(u)
          if ok then
            local t = s:tensors(u)[1]
            if arg[3] and s:stats().direct then print "direct" end
            print(u, t:data() == store:read(u == 1 and "layer1" or "large"):data())
            s:release(u)
          else
            print(u, code, message)
          end
        end
      end
      s:close()]])
    if os.getenv "ASAN_OPTIONS" then return pending "a preloaded library does not come before AddressSanitizer's" end
    local function lines(direct, plan, told)
      direct = direct .. (told and " told" or "")
      local code, out, errors = support.shell(("%s LD_PRELOAD=%s %s %s %s %s"):format(plan, support.quote(fault),
        support.quote(support.onn), support.quote(script), support.quote(model), direct))
      assert.equal(0, code, errors)
      local list = {}
      for line in out:gmatch "[^\n]+" do list[#list + 1] = line end
      return list
    end
    local _, opening = support.read(folder .. "/log", lines("", "ONN_FAULT_LOG=" .. folder .. "/log")):gsub("pread\n", "")
    local first = ("ONN_FAULT=pread:%d:"):format(opening + 1) -- what the stream reads first
    assert.equal("direct", lines("true", "", true)[1])
    assert.same({ "1\ttrue", "2\ttrue", "1\ttrue", "2\ttrue" }, lines("true", first .. "EINVAL", true)) -- through the page cache from then on
    for _, direct in ipairs { "true", "false" } do
      local healthy = { "1\ttrue", "2\ttrue", "1\ttrue", "2\ttrue" }
      assert.same(healthy, lines(direct, first .. "EINTR"))
      assert.same(healthy, lines(direct, first .. "short"))
      local once = lines(direct, first .. "EBADMSG")
      assert.matches("^1\tio\t.*/a%.safetensors: tensor 'layer1': reading at byte %d+: ", once[1])
      for i = 2, 4 do assert.equal(healthy[i], once[i]) end
      for i, line in ipairs(lines(direct, first .. "EIO")) do
        assert.matches(i % 2 == 1 and "^1\tio\t.*'layer1'.*Input/output error" or "^2\tio\t.*'large'.*Input/output error", line)
      end
    end
  end)
end)

describe("rows of a store", function()
  local function ids(list) return tensors.from_table(list, "i32") end

  it("are those of the whole tensor", function()
    local store = assert(stores.open(model))
    local whole, seed = store:read "large", 1
    local list = { 699, 0, 0, 5, 4, 3, 699 }
    for i = 8, 900 do
      seed = (seed * 1103515245 + 12345) % 2147483648
      list[i] = math.floor(seed / 65536) % 700
    end
    for _, n in ipairs { 1, 2, 7, 100, 900 } do
      local some, wanted = {}, {}
      for i = 1, n do
        some[i] = list[i]
        wanted[i] = whole:narrow(1, list[i] + 1, 1):data()
      end
      local rows = assert(store:read_rows("large", ids(some)))
      assert.equal(("bf16 (%d, 512)"):format(n), rows:describe())
      assert.is_true(table.concat(wanted) == rows:data())
    end
    local all = {}
    for i = 1, 40 do all[i] = i - 1 end
    assert.is_true(store:read "kind.I64":data() == store:read_rows("kind.I64", ids(all)):data())
    store:close()
  end)

  it("must be there", function()
    local store = assert(stores.open(model))
    for id, text in pairs { [-1] = "no row %-1", [700] = "rows 0 to 699, and no row 700" } do
      local none, message, code = store:read_rows("large", ids { 3, id })
      assert.is_nil(none)
      assert.matches("/b%.safetensors: tensor 'large' has.*" .. text, message)
      assert.equal("argument", code)
    end
    assert.is_nil((store:read_rows("absent", ids { 1 })))
    assert.is_nil((store:read_rows("single", ids { 1 })))
    assert.error_matches(function() store:read_rows("large", tensors.from_table { 1 }) end, "i32")
    store:close()
  end)
end)
