-- Images as data: pictures in folders, IDX, .npy and safetensors; what is damaged or does not fit is named.
local images = require "onn.data.images"
local core = require "onn.core.ops"
local hash = require "onn.core.hash"
local picture = require "onn.core.picture"
local store = require "onn.store"
local support = require "tests.support"
local tensors = require "onn.core.tensor"

local bit = require "bit"
local folder
setup(function() folder = support.scratch() end)
teardown(support.scratch_remove)

local function be(n) return string.char(bit.rshift(n, 24) % 256, bit.rshift(n, 16) % 256, bit.rshift(n, 8) % 256, n % 256) end

local function crc32(text)
  local c = bit.bnot(0)
  for i = 1, #text do
    c = bit.bxor(c, text:byte(i))
    for _ = 1, 8 do c = bit.bxor(bit.rshift(c, 1), bit.band(0xedb88320, -bit.band(c, 1))) end
  end
  return bit.bnot(c)
end

-- A PNG without compression; pixel(row, column) -> red, green, blue.
local function png(path, height, width, pixel)
  local lines = {}
  for row = 0, height - 1 do
    local line = { "\0" }
    for column = 0, width - 1 do line[#line + 1] = string.char(pixel(row, column)) end
    lines[#lines + 1] = table.concat(line)
  end
  local raw = table.concat(lines)
  local a, b = 1, 0
  for i = 1, #raw do
    a = (a + raw:byte(i)) % 65521
    b = (b + a) % 65521
  end
  local function le(n) return string.char(n % 256, math.floor(n / 256)) end
  local data = "\120\1\1" .. le(#raw) .. le(65535 - #raw) .. raw .. be(b * 65536 + a)
  local function chunk(kind, body) return be(#body) .. kind .. body .. be(crc32(kind .. body)) end
  return support.write(path, "\137PNG\r\n\26\n" .. chunk("IHDR", be(width) .. be(height) .. "\8\2\0\0\0") .. chunk("IDAT", data) .. chunk("IEND", ""))
end

local function model(channels, classes, config)
  return { sizes = { channels = channels, classes = classes }, config = config or {} }
end

local plain = { mean = { 0, 0, 0 }, std = { 1, 1, 1 } }

describe("pictures", function()
  it("are decoded as they are, normalised by channel", function()
    local path = png(folder .. "/a.png", 3, 3, function(r, c) return 10 * r, 20 * c, 255 end)
    assert.same({ 3, 3 }, { picture.size(path) })
    local x = assert(picture.read(path, tensors.zeros("f32", { 3, 3, 3 }), { 0, 0, 0.5 }, { 1, 1, 0.25 }))
    for r = 0, 2 do
      for c = 0, 2 do
        local function at(k) return x:select(1, k):select(1, r + 1):select(1, c + 1):item() end
        assert.near(10 * r / 255, at(1), 1e-6)
        assert.near(20 * c / 255, at(2), 1e-6)
        assert.near(2, at(3), 1e-6)
      end
    end
  end)

  it("are scaled to cover and cut in the middle", function()
    local path = png(folder .. "/b.png", 8, 16, function(_, c) return c < 4 and 255 or 0, c >= 12 and 255 or 0, 128 end)
    local x = assert(picture.read(path, tensors.zeros("f32", { 3, 4, 4 }), { 0, 0, 0 }, { 1, 1, 1 }))
    assert.near(128 / 255, core.reduce(x:select(1, 3):contiguous():view { 16 }, "mean"):item(), 1e-6)
    assert.is_true(core.reduce(x:select(1, 1):contiguous():view { 16 }, "max"):item() < 0.2) -- its edges are cut off
  end)

  it("that are none, damaged or too large are refused by name", function()
    local text = support.write(folder .. "/text.png", "hello")
    assert.same({ nil, "format" }, { (picture.size(text)), select(3, picture.size(text)) })
    local whole = support.read(png(folder .. "/c.png", 8, 8, function() return 1, 2, 3 end))
    local cut = support.write(folder .. "/cut.png", whole:sub(1, 70))
    local _, message = picture.read(cut, tensors.zeros("f32", { 3, 8, 8 }), { 0, 0, 0 }, { 1, 1, 1 })
    assert.matches("cut%.png: the picture is damaged", message)
    local huge = support.write(folder .. "/huge.png", whole:sub(1, 16) .. be(60000) .. be(60000) .. whole:sub(25))
    assert.matches("huge%.png", select(2, picture.size(huge)))
  end)
end)

describe("image data", function()
  it("from folders: a class each, in order, by the model's labels where it has some", function()
    local root = folder .. "/classes"
    assert(os.execute(("mkdir -p %s/cat %s/ant"):format(root, root)) == 0)
    png(root .. "/cat/1.png", 4, 4, function() return 255, 0, 0 end)
    png(root .. "/ant/2.png", 4, 4, function() return 0, 0, 0 end)
    png(root .. "/ant/1.PNG", 4, 4, function() return 0, 255, 0 end)
    support.write(root .. "/ant/notes.txt", "no picture")
    local set = assert(images.open(root, model(3, 2), plain))
    assert.same({ { 0, 0, 1 }, { "ant", "cat" }, 4 }, { set.labels, set.classes, set.height })
    local b = images.batch(set, { 3, 1 })
    assert.same({ { 2, 3, 4, 4 }, { 1, 0 }, { 2, 0 } }, { b.x:shape(), b.labels:totable(), b.rows:totable() })
    assert.equal(1, b.x:select(1, 1):select(1, 1):select(1, 1):select(1, 1):item())
    assert.same({ 1, 1, 0 }, assert(images.open(root, model(3, 2, { labels = { "cat", "ant" } }), plain)).labels)
    assert.matches("ant: the model has no such class", select(2, images.open(root, model(3, 2, { labels = { "cat", "dog" } }), plain)))
    assert.matches("image 3 is of class 1; the model has classes 0 to 0", select(2, images.open(root, model(3, 1), plain)))
    assert.matches("a folder for each class", select(2, images.open(root .. "/ant", model(3, 2), plain)))
  end)

  it("from IDX, .npy and safetensors: the same numbers", function()
    local bytes = {}
    for i = 1, 24 do bytes[i] = string.char(i * 10) end
    local raw = table.concat(bytes)
    support.write(folder .. "/t-images-idx3-ubyte", "\0\0\8\3" .. be(4) .. be(2) .. be(3) .. raw)
    support.write(folder .. "/t-labels-idx1-ubyte", "\0\0\8\1" .. be(4) .. "\1\0\2\1")
    local function npy(kind, shape, data)
      local header = ("{'descr': '%s', 'fortran_order': False, 'shape': (%s), }"):format(kind, shape)
      return "\147NUMPY\1\0" .. string.char(#header % 256, 0) .. header .. data
    end
    support.write(folder .. "/train_x.npy", npy("|u1", "4, 1, 2, 3", raw))
    support.write(folder .. "/train_y.npy", npy("<i4", "4,", "\1\0\0\0\0\0\0\0\2\0\0\0\1\0\0\0"))
    assert(store.write(folder .. "/x.safetensors", { x = tensors.from_data(raw, "u8", { 4, 1, 2, 3 }), y = tensors.from_table({ 1, 0, 2, 1 }, "i64") }))
    local seen
    for _, name in ipairs { "t-images-idx3-ubyte", "train_x.npy", "x.safetensors" } do
      local set = assert(images.open(folder .. "/" .. name, model(3, 3)))
      assert.same({ 1, 0, 2, 1 }, set.labels)
      local b = images.batch(set, { 2, 4 })
      assert.near((70 / 255 - 0.485) / 0.229, b.x:select(1, 1):select(1, 1):select(1, 1):select(1, 1):item(), 1e-5)
      seen = seen or hash.data(b.x)
      assert.equal(seen, hash.data(b.x))
    end
    assert.matches("24 bytes of data, its header says 30", select(2, images.open(support.write(folder .. "/bad_x.npy", npy("|u1", "5, 2, 3", raw)), model(1, 3))))
    assert.matches("Fortran", select(2, images.open(support.write(folder .. "/f_x.npy", (npy("|u1", "4, 2, 3", raw):gsub("False", "True "))), model(1, 3))))
    assert.matches("no IDX file", select(2, images.open(support.write(folder .. "/images", "what"), model(1, 3))))
    assert.matches("there is no tensor 'y'", select(2, images.open((function()
      assert(store.write(folder .. "/only.safetensors", { x = tensors.zeros("f32", { 1, 1, 2, 2 }) }))
      return folder .. "/only.safetensors"
    end)(), model(1, 3))))
    assert.matches("images of 2 channels, the model takes 3", select(2, images.open((function()
      assert(store.write(folder .. "/two.safetensors", { x = tensors.zeros("f32", { 1, 2, 2, 2 }), y = tensors.zeros("i32", { 1 }) }))
      return folder .. "/two.safetensors"
    end)(), model(3, 3))))
  end)

  it("comes in another order each epoch, the same with the same seed, and goes on from a cursor", function()
    local x, y = tensors.zeros("f32", { 10, 1, 2, 2 }), {}
    for i = 1, 10 do y[i] = i - 1 end
    assert(store.write(folder .. "/ten.safetensors", { x = x, y = tensors.from_table(y, "i32") }))
    local function labels(order)
      local list = {}
      for update in images.batches(assert(images.open(folder .. "/ten.safetensors", model(1, 10))), order) do
        for _, b in ipairs(update) do for _, l in ipairs(b.labels:totable()) do list[#list + 1] = l end end
      end
      return list
    end
    local first = labels { batch = 4, micro_batch = 3, seed = 1, epoch = 0 }
    local sorted = { unpack(first) }
    table.sort(sorted)
    assert.same(y, sorted)
    assert.same(first, labels { batch = 4, seed = 1, epoch = 0 })
    assert.not_same(first, labels { batch = 4, seed = 1, epoch = 1 })
    assert.same({ unpack(first, 9) }, labels { batch = 4, seed = 1, epoch = 0, cursor = 2 })
    assert.same(y, labels { batch = 4, shuffle = false })
  end)
end)
