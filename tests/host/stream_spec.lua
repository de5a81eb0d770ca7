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
end)
