-- Data that is no text: tensors x (rows, ...) and y, from a safetensors file or from x.npy and y.npy in a directory, as a set of onn.data.
local core = require "onn.core.ops"
local npy = require "onn.data.npy"
local stores = require "onn.core.store"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local tables = {}

local function shape_text(shape) return "(" .. table.concat(shape, ", ") .. ")" end

-- An object whose length # gives.
local function sized(class, self)
  local proxy = newproxy(true)
  local meta = getmetatable(proxy)
  meta.__index = function(_, key) return self[key] or class[key] end
  meta.__len = function() return self.count end
  return proxy
end

-- Rows of t by number (from 1), as a new tensor.
local function pick(t, numbers)
  local shape = t:shape()
  shape[1] = #numbers
  local out = tensors.new(t:dtype(), shape)
  for i, n in ipairs(numbers) do out:narrow(1, i, 1):copy(t:narrow(1, n, 1)) end
  return out
end

-- What a net takes of rows x and y (or nil): each row is a sequence of its own. numbers: the rows' own, from 1.
local function make(x, y, numbers)
  local count = x:size(1)
  local starts, own = {}, {}
  for r = 0, count do starts[r + 1] = r end
  for r = 1, count do own[r] = (numbers and numbers[r] or r) - 1 end
  return { x = x, labels = y, starts = tensors.from_table(starts, "i32"), rows = tensors.from_table(own, "i64"), tokens = count,
    sequences = count, longest = 1, supervised = count }
end

-- x and y as the net wants them, or nil and what is wrong. y may be nil.
local function check(x, y, c)
  local shape, input = x:shape(), c.input
  local same = #shape == #input + 1 and shape[1] > 0
  for d = 1, #input do same = same and (input[d] == "any" or shape[d + 1] == input[d]) end
  if not same then return nil, ("x is %s, expected (rows, %s)"):format(shape_text(shape), table.concat(input, ", ")) end
  x = x:to(c.ids and "i32" or "f32")
  if not y then return x end
  if y:size(1) ~= shape[1] then return nil, ("x has %d rows, y %d"):format(shape[1], y:size(1)) end
  if c.loss ~= "classes" then return x, y:to "f32" end
  if y:numel() ~= shape[1] then return nil, ("y is %s; classes are (rows)"):format(shape_text(y:shape())) end
  if not ({ i32 = true, i64 = true, u8 = true, i8 = true })[y:dtype()] then return nil, ("y is %s; classes are whole numbers"):format(y:dtype()) end
  y = y:to("i32"):contiguous():view { shape[1] }
  for r, class in ipairs(y:totable()) do
    if class < 0 or class >= c.outputs then return nil, ("row %d of y is class %d; the model has 0 to %d"):format(r, class, c.outputs - 1) end
  end
  return x, y
end

-- The batch of all rows; or nil and what is wrong.
function tables.batch(x, y, c)
  if not x then return nil, "there is no tensor 'x'" end
  local wrong
  x, wrong = check(x, y, c)
  if not x then return nil, wrong end
  return make(x:contiguous(), y and wrong:contiguous())
end

local Rows = {}

function Rows.info(self) return { rows = self.count, sequences = self.count, tokens = self.count, longest = 1, truncated = 0, dropped = 0, fill = 1 } end

-- The order of an epoch, as planned without arguments.
function Rows.shuffle(self, seed, epoch)
  local order = self.order
  for i = 1, self.count do order[i] = i end
  if not seed then return end
  local site = ("tables/order/%d"):format(epoch)
  for i = self.count, 2, -1 do
    local other = 1 + math.floor(core.random(seed, site, i) * i)
    order[i], order[other] = order[other], order[i]
  end
end

function Rows.batch(self, first, count)
  local numbers = {}
  for i = 1, count do numbers[i] = self.order[first + i - 1] end
  return make(pick(self.x, numbers), pick(self.y, numbers), numbers)
end

local Corpus = {}

function Corpus.hash(self) return self.sum end
function Corpus.rows(self)
  local rows = sized(Rows, { count = self.count, x = self.x, y = self.y, order = {} })
  rows:shuffle()
  return rows
end

local function read(path)
  if system.isdir(path) then
    local x, message, code = npy.read(path .. "/x.npy")
    if not x then return nil, message, code end
    local y
    y, message, code = npy.read(path .. "/y.npy")
    if not y then return nil, message, code end
    return x, y, system.hash_file(path .. "/x.npy") .. system.hash_file(path .. "/y.npy")
  end
  if not path:find "%.safetensors$" then
    return nil, path .. ": a safetensors file with x and y, or a directory with x.npy and y.npy, is expected", "unsupported"
  end
  local store, message, code = stores.open(path)
  if not store then return nil, message, code end
  local values = {}
  for _, name in ipairs { "x", "y" } do
    if not store:info(name) then
      store:close()
      return nil, ("%s: there is no tensor '%s'"):format(path, name), "format"
    end
    values[name], message, code = store:read(name)
    if not values[name] then return nil, message, code end
  end
  store:close()
  return values.x, values.y, system.hash_file(path)
end

-- The set of a file for a model (see onn.data.open); or nil, message, code.
function tables.open(model, path)
  if type(path) ~= "string" then return nil, "rows in a table are text; this model takes a file with x and y", "argument" end
  local x, y, sum = read(path)
  if not x then return nil, y, sum end
  local wrong
  x, wrong = check(x, y, model.sizes)
  if not x then return nil, path .. ": " .. wrong, "format" end
  y = wrong
  tensors.keep(x, y)
  local count = x:size(1)
  return { corpus = sized(Corpus, { count = count, x = x, y = y, sum = sum }), kind = "tables", path = path, samples = count, tokens = count,
    supervised = count, truncated = 0, skipped = 0, only_last = 0, plans = {}, ordered = {}, seq_len = 1 }
end

return tables
