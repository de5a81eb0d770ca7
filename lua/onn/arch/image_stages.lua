-- Builds the stages of a convolutional net: a family says what follows what, with the sizes that a new net would have; where a store is
-- there its tensors' shapes are the sizes, so narrowed and widened nets need no further config.
local Builder = {}
Builder.__index = Builder

local builder = {}

-- store: an onn.core.store, or nil for a new net. channels: of the images.
function builder.new(store, channels)
  return setmetatable({ store = store, channels = channels, stages = {}, wrong = {}, blocks = 0, eps = 1e-5, momentum = 0.1 }, Builder)
end

function Builder:fault(text, ...) self.wrong[#self.wrong + 1] = text:format(...) end

-- Is there such a tensor in the store? Of a new net: `otherwise`.
function Builder:has(name, otherwise)
  if not self.store then return otherwise or false end
  return self.store:info(name) ~= nil
end

-- The stored shape of `name`, which must have `dims` dimensions, or nil.
local function stored(self, name, dims)
  if not self.store then return nil end
  local info = self.store:info(name)
  if not info then
    self:fault("tensor '%s' is missing", name)
  elseif #info.shape ~= dims then
    self:fault("tensor '%s' has the shape (%s), expected %d dimensions", name, table.concat(info.shape, ", "), dims)
  else
    for _, size in ipairs(info.shape) do
      if size < 1 then self:fault("tensor '%s' is empty", name) return nil end
    end
    return info.shape
  end
end

local function add(self, node) table.insert(self.nodes, node) end

local function tensor(self, name, role, shape, more)
  local t = { name = name, role = role, shape = shape, vector = true }
  for k, v in pairs(more or {}) do t[k] = v end
  table.insert(self.stage.tensors, t)
end

local function add_bias(self, name, out, wanted)
  if wanted then tensor(self, name .. ".bias", name .. "_bias", { out }, { fill = 0 }) end
end

-- A stage and what fill() puts into it; `kind` "block" (default) can be chosen for training by number.
function Builder:block(name, fill, kind)
  kind = kind or "block"
  self.stage = { name = name, kind = kind, layers = {}, tensors = {}, nodes = {}, untiled = true }
  if kind == "block" then self.stage.index, self.blocks = self.blocks, self.blocks + 1 end
  self.nodes = self.stage.nodes
  table.insert(self.stages, self.stage)
  fill()
end

local function inside(self, fill)
  local outer, nodes = self.nodes, {}
  self.nodes = nodes
  fill()
  self.nodes = outer
  return nodes
end

-- A convolution to `out` channels with a window of `kernel`. opt: stride, padding (default: keeps the size at stride 1), depthwise, groups
-- (of a new net; else the weight says it), bias.
function Builder:conv(name, out, kernel, opt)
  opt = opt or {}
  local into, groups = self.channels, opt.depthwise and self.channels or opt.groups or 1
  local shape = stored(self, name .. ".weight", 4)
  if shape then
    out = shape[1]
    groups = into / shape[2]
    if into % shape[2] ~= 0 or out % groups ~= 0 then
      self:fault("tensor '%s.weight' has the shape (%s), but %d channels come in", name, table.concat(shape, ", "), into)
    elseif shape[3] ~= kernel or shape[4] ~= kernel then
      self:fault("tensor '%s.weight' has a window of %d x %d, expected %d x %d", name, shape[3], shape[4], kernel, kernel)
    elseif opt.depthwise and groups ~= into or not opt.depthwise and opt.exact and groups ~= (opt.groups or 1) then
      self:fault("tensor '%s.weight' is for %d groups, expected %d", name, groups, opt.depthwise and into or opt.groups or 1)
    end
    if #self.wrong > 0 then groups = 1 end
  end
  local padding = opt.padding or math.floor((kernel - 1) / 2)
  local node = { kind = "conv", name = name, stride = opt.stride or 1, padding = padding, groups = groups, out = out, kernel = kernel }
  add(self, node)
  shape = { out, math.floor(into / groups), kernel, kernel }
  table.insert(self.stage.layers, { role = name, name = name, out = out, into = into, kernel = kernel, groups = groups, conv = true })
  table.insert(self.stage.tensors, { name = name .. ".weight", role = name, shape = shape,
    deviation = math.sqrt(2 / (out * kernel * kernel / groups)) })
  add_bias(self, name, out, self:has(name .. ".bias", opt.bias))
  self.channels = out
end

-- A product of rows (n, in). opt: weight and bias (tensors' names: name.weight, name.bias), deviation (of a new weight), plain (a new one
-- has no bias).
function Builder:linear(name, out, opt)
  opt = opt or {}
  local weight, bias = opt.weight or name .. ".weight", opt.bias or name .. ".bias"
  local into, shape = self.channels, stored(self, weight, 2)
  if shape then
    out = shape[1]
    if shape[2] ~= into then
      self:fault("tensor '%s' has the shape (%s), but %d features come in", weight, table.concat(shape, ", "), into)
    end
  end
  add(self, { kind = "linear", name = name, out = out })
  table.insert(self.stage.layers, { role = name, name = name, out = out, into = into, tensor = opt.weight })
  table.insert(self.stage.tensors, { name = weight, role = name, shape = { out, into }, deviation = opt.deviation or 1 / math.sqrt(3 * into) })
  if self:has(bias, not opt.plain) then tensor(self, bias, name .. "_bias", { out }, { fill = 0 }) end
  self.channels = out
end

-- Batch norm. Its running statistics are state: saved, moved by training, and no parameters.
function Builder:norm(name)
  local shape = { self.channels }
  add(self, { kind = "norm", name = name, eps = self.eps, momentum = self.momentum })
  local function one(part, more) tensor(self, name .. "." .. part, name .. "." .. part, shape, more) end
  one("weight", { fill = 1 })
  one("bias", { fill = 0 })
  one("running_mean", { state = true, fill = 0 })
  one("running_var", { state = true, fill = 1 })
  if self:has(name .. ".num_batches_tracked", true) then
    tensor(self, name .. ".num_batches_tracked", name .. ".num_batches_tracked", {}, { state = true, dtype = "i64", fill = 0 })
  end
end

-- Layer norm over the channels of each row.
function Builder:layer_norm(name, eps)
  add(self, { kind = "layer_norm", name = name, eps = eps })
  tensor(self, name .. ".weight", name .. ".weight", { self.channels }, { fill = 1 })
  tensor(self, name .. ".bias", name .. ".bias", { self.channels }, { fill = 0 })
end

function Builder:activation(name) add(self, { kind = "activation", name = name }) end
function Builder:max_pool(kernel, stride, padding)
  add(self, { kind = "pool", kernel = kernel, stride = stride, padding = padding or 0 })
end
function Builder:average_pool(kernel) add(self, { kind = "pool", kernel = kernel, stride = kernel, average = true }) end
function Builder:average() add(self, { kind = "average" }) end
function Builder:dropout(name, p) if p > 0 then add(self, { kind = "dropout", name = name, p = p }) end end

-- Averages on a grid of size x size, then one row for each image.
function Builder:grid(size)
  add(self, { kind = "adaptive_pool", size = size })
  add(self, { kind = "flatten" })
  self.channels = self.channels * size * size
end

-- Layer scale: one number for each channel, stored (c, 1, 1), or with `rows` (c).
function Builder:scale(name, rows)
  add(self, { kind = "scale", name = name })
  tensor(self, name, name, rows and { self.channels } or { self.channels, 1, 1 }, { fill = 1e-6 })
end

-- Pixels become rows, behind learned rows of these names (1, 1, c); `places` (1, t, c) is added. pixels: of a new net's images.
function Builder:tokens(learned, places, pixels)
  local shape = stored(self, places, 3)
  add(self, { kind = "tokens", learned = learned, places = places })
  for _, name in ipairs(learned) do tensor(self, name, name, { 1, 1, self.channels }, { deviation = 0.02 }) end
  local count = shape and shape[2] or pixels + #learned
  tensor(self, places, places, { 1, count, self.channels }, { deviation = 0.02 })
end

-- opt: q, k, v (names of products; bias: do new ones have one?) or all = function() that adds the one product of the three, out (name).
function Builder:attention(heads, opt)
  local width = self.channels
  local function product(name, plain)
    self.channels = width
    return name and inside(self, function() self:linear(name, width, { deviation = 0.02, plain = plain }) end)
  end
  local plain = opt.bias == false
  if width % heads ~= 0 then self:fault("%d channels do not part into %d heads", width, heads) end
  add(self, { kind = "attention", heads = heads, q = product(opt.q, plain), k = product(opt.k, plain), v = product(opt.v, plain),
    all = opt.all and inside(self, opt.all), out = product(opt.out) })
end

-- An image's first row, or with `skip` learned rows in front the first and behind it the mean of the others.
function Builder:first(skip)
  add(self, { kind = skip and "first_and_mean" or "first", skip = skip })
  if skip then self.channels = 2 * self.channels end
end

-- body() + shortcut() (or the input itself), then the activation `after`, if named.
function Builder:residual(body, shortcut, after)
  local into = self.channels
  local node = { kind = "residual", body = inside(self, body), after = after }
  local out = self.channels
  if shortcut then
    self.channels = into
    node.shortcut = inside(self, shortcut)
  end
  local beside = shortcut and self.channels or into
  if beside ~= out then
    self:fault("'%s': %d channels are added to %d", self.stage.name, out, beside)
  end
  self.channels = out
  add(self, node)
end

-- body(), with its input added where that has as many channels (and `same` holds: its pixels too).
function Builder:residual_where(same, body)
  local into, nodes = self.channels, inside(self, body)
  if same and into == self.channels then
    add(self, { kind = "residual", body = nodes })
  else
    for _, node in ipairs(nodes) do add(self, node) end
  end
end

-- Squeeze and excitation: two convolutions of single pixels, `gate` after the second.
function Builder:squeeze(name, inner, activation, gate)
  local out = self.channels
  add(self, { kind = "squeeze", body = inside(self, function()
    self:conv(name .. ".fc1", inner, 1, { bias = true })
    self:activation(activation)
    self:conv(name .. ".fc2", out, 1, { bias = true })
    self:activation(gate)
  end) })
  if self.channels ~= out then self:fault("'%s': a gate of %d channels for %d", name, self.channels, out) end
  self.channels = out
end

-- The input and, behind it, what body() makes of it.
function Builder:concat(body)
  local into = self.channels
  add(self, { kind = "concat", body = inside(self, body) })
  self.channels = into + self.channels
end

-- body() sees the pixels as rows.
function Builder:pixels(body) add(self, { kind = "pixels", body = inside(self, body) }) end

return builder
