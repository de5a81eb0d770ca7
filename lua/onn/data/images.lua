-- Images with a class each, for nets that classify them; the same functions as onn.data has for text. A source is a folder with one folder of
-- PNG and JPEG files for each class, or arrays (onn.data.arrays).
local arrays = require "onn.data.arrays"
local core = require "onn.core.ops"
local hash = require "onn.core.hash"
local picture = require "onn.core.picture"
local signals = require "onn.core.signals"
local system = require "onn.core.system"
local scope = require "onn.scope"
local tensors = require "onn.core.tensor"

local images = {}

-- ImageNet's, which published nets were trained with.
images.mean, images.deviation = { 0.485, 0.456, 0.406 }, { 0.229, 0.224, 0.225 }

local function spread(list, channels, fallback)
  local out = {}
  list = list or fallback
  for c = 1, channels do out[c] = list[c] or list[1] end
  return out
end

-- Number of a class from 0: its place in the config's labels, if there are some, else among the folders.
local function class_of(name, at, labels)
  if not labels then return at end
  for i, label in ipairs(labels) do if label == name then return i - 1 end end
end

local function read_folder(set, path, labels)
  local classes = {}
  for _, name in ipairs(system.list(path) or {}) do
    if name:sub(1, 1) ~= "." and system.isdir(path .. "/" .. name) then classes[#classes + 1] = name end
  end
  table.sort(classes)
  if #classes == 0 then return nil, path .. ": a folder for each class is expected", "format" end
  set.files, set.labels, set.classes = {}, {}, classes
  for at, name in ipairs(classes) do
    local class = class_of(name, at - 1, labels)
    if not class then
      return nil, ("%s/%s: the model has no such class (it has %s)"):format(path, name, table.concat(labels, ", ", 1, math.min(#labels, 8))), "format"
    end
    local files = system.list(path .. "/" .. name) or {}
    table.sort(files)
    for _, file in ipairs(files) do
      if file:lower():find "%.png$" or file:lower():find "%.jpe?g$" then
        set.files[#set.files + 1], set.labels[#set.labels + 1] = ("%s/%s/%s"):format(path, name, file), class
      end
    end
  end
  if #set.files == 0 then return nil, path .. ": there is no .png or .jpg in its folders", "format" end
  return true
end

-- The size that pictures get: --image-size, the config's, the pictures' own if the first is a square, else 224.
local function picture_size(set, wanted)
  if wanted then return wanted end
  local height, width, code = picture.size(set.files[1])
  if not height then return nil, width, code end
  return height == width and height <= 512 and height or 224
end

-- open(path, model, opt): opt: image_size, mean, std (lists, of values in 0..1). model: channels and classes are its.
-- Returns a set {labels, samples, tokens (= samples), height, width, ...}; or nil, message, code.
function images.open(path, model, opt)
  opt = opt or {}
  local sizes, config = model.sizes, model.config or {}
  local set = { path = path, ordered = {}, channels = sizes.channels, mean = spread(opt.mean or config.image_mean, sizes.channels, images.mean),
    deviation = spread(opt.std or config.image_std, sizes.channels, images.deviation) }
  for c = 1, sizes.channels do
    if not (set.deviation[c] > 0) then return nil, "--std: deviations should be above 0", "argument" end
  end
  local message, code
  if system.isdir(path) then
    local labels = type(config.labels) == "table" and config.labels or nil
    local ok
    ok, message, code = read_folder(set, path, labels)
    if not ok then return nil, message, code end
    if sizes.channels ~= 1 and sizes.channels ~= 3 then
      return nil, ("%s: pictures have 1 or 3 channels, the model takes %d"):format(path, sizes.channels), "format"
    end
    local size
    size, message, code = picture_size(set, opt.image_size or sizes.image_size)
    if not size then return nil, message, code end
    set.height, set.width = size, size
  else
    local x, labels, wrong = scope(arrays.read, path)
    if not x then return nil, labels, wrong end
    set.x, set.labels, set.height, set.width = x, labels, x:size(3), x:size(4)
    if x:size(2) ~= sizes.channels and x:size(2) ~= 1 then
      return nil, ("%s: images of %d channels, the model takes %d"):format(path, x:size(2), sizes.channels), "format"
    end
  end
  for i, label in ipairs(set.labels) do
    if label < 0 or label >= sizes.classes then
      return nil, ("%s: image %d is of class %d; the model has classes 0 to %d"):format(path, i, label, sizes.classes - 1), "format"
    end
  end
  set.samples, set.tokens, set.supervised = #set.labels, #set.labels, #set.labels
  return set
end

function images.size(set) return set.samples end
function images.notes(set)
  return { ("%d images of %d x %d, %s"):format(set.samples, set.height, set.width, set.classes and #set.classes .. " classes" or "arrays") }
end

-- Of the labels, and of the files' names and sizes or the arrays' values.
function images.hash(set)
  local parts = { table.concat(set.labels, ","), set.height, set.width, table.concat(set.mean, ","), table.concat(set.deviation, ",") }
  if set.x then parts[#parts + 1] = hash.data(set.x) end
  for _, file in ipairs(set.files or {}) do parts[#parts + 1] = ("%s %d"):format(file:sub(#set.path + 1), system.stat(file).size) end
  return hash.text(table.concat(parts, "\n"))
end

function images.updates(set, order) return math.ceil(set.samples / order.batch) end

-- The samples' order in an epoch: Fisher and Yates' shuffle by the run's counter-based numbers.
local function permutation(set, order)
  local key = order.shuffle == false and "none" or ("%d/%d"):format(order.seed or 0, order.epoch or 0)
  if set.ordered.key == key then return set.ordered end
  local list = { key = key }
  for i = 1, set.samples do list[i] = i end
  if order.shuffle ~= false then
    for i = set.samples, 2, -1 do
      local j = 1 + math.floor(core.random(order.seed or 0, "images/" .. (order.epoch or 0), i) * i)
      list[i], list[j] = list[j], list[i]
    end
  end
  set.ordered = list
  return list
end

-- u8 (n, c, h, w) as the net takes it.
local function normalised(set, x)
  local shape = { 1, set.channels, 1, 1 }
  local y = core.affine(x, 1 / 255, 0)
  y = core.binary(y, tensors.from_table(set.mean, "f32"):view(shape), "sub")
  return core.binary(y, tensors.from_table(set.deviation, "f32"):view(shape), "div")
end

-- {x f32 (n, c, h, w), labels i32 (n), starts i32 (n + 1): each image by itself, rows i64 (n): the samples' numbers, tokens, supervised} of some
-- samples.
local function make_batch(set, numbers)
  local own = set.x and set.x:size(2) or set.channels -- one channel of an array serves all of the net's
  local x = tensors.new(set.x and set.x:dtype() or "f32", { #numbers, own, set.height, set.width })
  local labels, rows, starts = {}, {}, { 0 }
  for k, i in ipairs(numbers) do
    labels[k], rows[k], starts[k + 1] = set.labels[i], i - 1, k
    if set.files then
      local ok, message = picture.read(set.files[i], x:select(1, k), set.mean, set.deviation)
      if not ok then error(message, 0) end
    else
      x:select(1, k):copy(set.x:select(1, i))
    end
  end
  x = x:to "f32"
  if own ~= set.channels then x = x:expand { #numbers, set.channels, set.height, set.width }:contiguous() end
  if set.x and set.x:dtype() == "u8" then x = normalised(set, x) end
  return { x = tensors.keep(x), labels = tensors.keep(tensors.from_table(labels, "i32")), rows = tensors.keep(tensors.from_table(rows, "i64")),
    starts = tensors.keep(tensors.from_table(starts, "i32")), tokens = #numbers, supervised = #numbers }
end

function images.batch(set, numbers) return scope(make_batch, set, numbers) end

-- Bytes that a set keeps in memory, and that making batches of `count` images of them takes for a while; 0 where pictures are read as they
-- are wanted.
function images.bytes(set, count)
  return set.x and set.x:bytes() + 4 * count * set.channels * set.height * set.width * 4 or 0
end

-- As onn.data's batches.
function images.batches(set, order)
  local size, cursor = order.batch, order.cursor or 0
  local micro = order.micro_batch or size
  return function()
    local first = cursor * size + 1
    if first > set.samples then return nil end
    local list, update = permutation(set, order), {}
    local last = math.min(set.samples, first + size - 1)
    for at = first, last, micro do
      local numbers = {}
      for i = at, math.min(at + micro - 1, last) do numbers[#numbers + 1] = list[i] end
      update[#update + 1] = images.batch(set, numbers)
    end
    cursor = cursor + 1
    return update, cursor
  end
end

-- loss(model, set, order) -> mean loss, samples, share of them that is given its own class; nil if a signal to stop came meanwhile.
function images.loss(model, set, order)
  local total, right = 0, 0
  for update in images.batches(set, { batch = order.micro_batch or order.batch, shuffle = false }) do
    local b = update[1]
    local carry = model:forward(model:carry(b), {})
    local nll = core.cross_entropy(carry.logits, b.labels, 1, false)
    total = core.running_sum(nll, total)
    local found, wanted = core.reduce(carry.logits, "argmax"):totable(), b.labels:totable()
    for i = 1, #wanted do if found[i] == wanted[i] then right = right + 1 end end
    for _, t in ipairs { carry.logits, nll, b.x, b.labels, b.rows, b.starts } do t:free() end
    if signals.pending() then return nil end
  end
  return total / set.samples, set.samples, right / set.samples
end

return images
