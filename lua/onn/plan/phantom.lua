-- A model for dry runs (onn.dry): the sizes and stages of another, with weights that are phantoms of the right shapes and dtypes, in memory
-- or as they pass through a ring. What it would remember is its own, and never the other's.
local lora = require "onn.nn.lora"
local scope = require "onn.scope"
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"

local phantom = {}

-- The dtype that a tensor is stored in; of one that is made anew, f32.
function phantom.stored(model, name)
  local info = model.store:info(name)
  return info and info.dtype or "F32"
end
local stored = phantom.stored

-- The dtype in which a stage's tensor is used: see Model:load_stage; a ring passes matrices as they are stored.
local function dtype_of(model, t, ring)
  if t.vector then return t.dtype or "f32" end
  return model.dtype == "bf16" and not ring and "bf16" or stored(model, t.name)
end

local function shape_of(model, name)
  for _, stage in ipairs(model.stages) do
    for _, t in ipairs(stage.tensors) do if t.name == name then return t.shape end end
  end
end

-- An embedding in its file, of which rows are read.
local function rows_of(model, t)
  local dtype = stored(model, t.name)
  return { rows = function(ids)
    local rows = tensors.new(dtype, { ids:numel(), t.shape[2] })
    return model.dtype == "bf16" and rows:to "bf16" or rows
  end }
end

-- A matrix that comes in row tiles.
local function tiles_of(whole, product, layout)
  local function pull(f, only)
    for k = 1, only and 1 or #product.tiles do
      local tile = product.tiles[k]
      local rows = not product.stacked and layout.units[tile.unit][tile.piece].rows or product.rows
      f(whole:narrow(1, tile.first + 1, rows), tile.first)
    end
  end
  return { out = product.rows, into = product.width, pull = pull }
end

-- A stage's weight of the role that `products` are about, as the ring gives it: row tiles, or those of each expert.
local function passing(whole, products, layout)
  if not products[1].stacked then return tiles_of(whole, products[1], layout) end
  local list = {}
  for k, product in ipairs(products) do
    local one = whole:select(1, k)
    list[k] = tiles_of(product.transposed and one:transpose(1, 2) or one, product, layout)
  end
  return list
end

local function trained(t, gradient)
  tape.leaf(t, gradient or tensors.new("f32", t:shape()))
  return t
end

-- Stage i of the shadow `self`. opt: layout (of onn.ring, or nil: weights rest in memory), full (all is trained), modules ({[layer] =
-- true}: those with an adapter), rank, dropout.
local function stage_of(self, i, opt)
  local model, layout = self.of, opt.layout
  local from, weights, products = model.stages[i], {}, {}
  local stage = setmetatable({ weights = weights, layers = {}, trained = opt.full or nil, batch_statistics = opt.full }, { __index = from })
  for _, product in ipairs(layout and layout.products[i] or {}) do
    products[product.role] = products[product.role] or {}
    table.insert(products[product.role], product)
  end
  for _, t in ipairs(from.tensors) do
    if layout and not t.vector and from.kind == "embedding" then
      weights[t.role] = rows_of(model, t)
    elseif not (layout and not t.vector and layout.tiles[i]) then -- a head's tiles come by the ring
      local w = tensors.new(dtype_of(model, t, layout), t.shape)
      if opt.full and model.dtype ~= "bf16" and not t.dtype then w = tensors.new("f32", t.shape) end
      if t.transposed then w = w:transpose(1, 2) end
      if opt.full and not t.state then w = trained(w) end
      weights[t.role] = products[t.role] and passing(w, products[t.role], layout) or w
    end
  end
  for role, name in pairs(not layout and from.shares or {}) do
    local w = tensors.new(opt.full and model.dtype or dtype_of(model, { name = name }), shape_of(model, name))
    weights[role] = opt.full and trained(w) or w
  end
  for k, layer in ipairs(from.layers) do
    local adapter = false
    if opt.modules and opt.modules[layer] then
      local a, b = lora.shapes(layer, opt.rank)
      adapter = { name = layer.name, scale = 1, dropout = opt.dropout or 0, a = trained(tensors.new(model.dtype, a)),
        b = trained(tensors.new(model.dtype, b)) }
    end
    stage.layers[k] = setmetatable({ weight = weights[layer.role], bias = weights[layer.role .. "_bias"], adapter = adapter },
      { __index = layer })
    weights[layer.role] = stage.layers[k]
  end
  return stage
end

-- The ring of a model that is streamed: its head's tiles, the first of which is the largest.
local function ring_of(model, layout)
  local ring, slot = {}, {}
  for i, tiles in pairs(layout.tiles) do
    local piece = layout.units[tiles[1].unit][tiles[1].piece]
    slot[i] = tensors.new(stored(model, piece.name), { piece.rows, shape_of(model, piece.name)[2] })
  end
  function ring.hold(_, _, f) return f() end
  function ring.tiles(_, i, f)
    local dtype = layout.rounded and model.dtype
    for _, tile in ipairs(layout.tiles[i]) do
      local weight = slot[i]:narrow(1, 1, layout.units[tile.unit][tile.piece].rows)
      scope(function() f(dtype and weight:to(dtype) or weight, tile.first) end)
    end
  end
  return ring
end

-- Vectors of a stage that is not in use, made each time that they are asked for: they rest in memory.
local function resting(stage)
  return setmetatable({}, { __index = function(_, role)
    for _, t in ipairs(stage.tensors) do
      if t.vector and t.role == role then return tensors.new(t.dtype or "f32", t.shape) end
    end
  end })
end

-- The shadow of a model, in a dry run; opt as above. Its stage i has all its weights from shadow.use(i) on.
function phantom.model(model, opt)
  local self = setmetatable({ of = model, stages = {} }, { __index = model })
  self.ring = opt.layout and ring_of(model, opt.layout) or false
  for i, stage in ipairs(model.stages) do
    self.stages[i] = setmetatable({ layers = {}, trained = opt.full or false, weights = resting(stage) }, { __index = stage })
  end
  self.use = function(i, more) self.stages[i] = stage_of(self, i, setmetatable(more or {}, { __index = opt })) end
  return self
end

return phantom
