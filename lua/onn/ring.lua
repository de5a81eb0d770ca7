-- The ring: how the weights of a model larger than memory pass through it. Matrices of `chunk` consecutive blocks make a unit, the head
-- is cut into row tiles, and units come and go through equal slots in the order in which the sweeps visit them (host/stream.c).
-- Where whole blocks are too large, row tiles of their matrices are the units, brought for each product anew (onn.row_tiles).
-- Vectors stay in memory; of the embedding only the rows that are asked for are read.
local core = require "onn.core.ops"
local scope = require "onn.scope"
local streams = require "onn.core.stream"
local tensors = require "onn.core.tensor"
local trace = require "onn.trace"

local Ring = {}
Ring.__index = Ring

local function matrices(stage)
  local list = {}
  for _, t in ipairs(stage.tensors) do if not t.vector then list[#list + 1] = t end end
  return list
end

local function stored_bytes(model, name) return model.store:info(name).bytes end

-- The tensor that a head's rows come from: its own, or the embedding's.
local function head_tensor(stage)
  local own = matrices(stage)[1]
  return own and own.name or stage.shares.head
end

-- Bytes of one cut of the head's loss, which passes as a whole.
local function head_cut(model, name)
  local info = model.store:info(name)
  return math.min(core.head_cut, info.shape[1]) * info.bytes / info.shape[1]
end

local function add_unit(layout, bytes, ...)
  layout.units[#layout.units + 1], layout.bytes[#layout.units + 1] = { ... }, bytes
  return #layout.units
end

-- Rows `each` at a time as units of their own: a list of {unit, first, piece}.
local function add_tiles(layout, model, name, each)
  local info, tiles = model.store:info(name), {}
  local total = info.shape[1]
  for first = 0, total - 1, each do
    local n = math.min(each, total - first)
    local unit = add_unit(layout, info.bytes / total * n, { name = name, first = first, rows = n })
    tiles[#tiles + 1] = { unit = unit, first = first, piece = 1 }
  end
  return tiles
end

-- How likely one of a stage's experts sees one of `tokens` tokens that each go to per_token of the experts, all being equally likely.
function Ring.chance(routed, tokens) return 1 - (1 - routed.per_token / routed.experts) ^ tokens end

-- Is an expert likelier not to be used than to be? Then it is not read ahead.
local function seldom(routed, tokens) return tokens and routed and Ring.chance(routed, tokens) < 0.5 end

-- Has a model such experts, with `tokens` tokens going through together?
function Ring.seldom(model, tokens)
  for _, stage in ipairs(model.stages) do if seldom(stage.routed, tokens) then return true end end
  return false
end

-- A block's matrices, in the order of their products, as units of at most `most` bytes (64 rows at least): rows of one, or a few whole
-- ones; what is stored (in, out) is not cut, nor one of stacked experts. Matrices of an expert share units with no other's.
-- Returns a list of {role, rows, width, tiles, expert (its number), stacked}.
local function add_products(layout, model, stage, most)
  local products, open = { routed = stage.routed }, {} -- open: by whose it is, the unit that further matrices may join
  local function put(t, owner, bytes, piece)
    local unit = open[owner]
    if not unit or layout.bytes[unit] + bytes > most then unit = add_unit(layout, 0) end
    open[owner] = unit
    table.insert(layout.units[unit], piece)
    layout.bytes[unit] = layout.bytes[unit] + bytes
    local rows, width = t.shape[#t.shape - 1], t.shape[#t.shape]
    if t.transposed or t.in_out then rows, width = width, rows end
    products[#products + 1] = { role = t.role, rows = rows, width = width, expert = t.expert, stacked = t.stacked,
      transposed = t.transposed or t.in_out, tiles = { { unit = unit, first = 0, piece = #layout.units[unit] } } }
  end
  local function put_stacked(group)
    local list = {}
    for _, t in ipairs(matrices(stage)) do if t.stacked == group then list[#list + 1] = t end end
    for e = 0, list[1].shape[1] - 1 do
      for _, t in ipairs(list) do
        put(setmetatable({ expert = e }, { __index = t }), group .. e, stored_bytes(model, t.name) / t.shape[1],
          { name = t.name, first = e, rows = 1 })
      end
    end
  end
  local met = {}
  for _, t in ipairs(matrices(stage)) do
    local bytes, rows = stored_bytes(model, t.name), t.shape[1]
    if t.stacked then
      if not met[t.stacked] then put_stacked(t.stacked) end
      met[t.stacked] = true
    elseif bytes <= most or t.transposed then
      put(t, t.expert or "all", bytes, { name = t.name })
    else
      local fit = math.max(1, math.floor(most / (bytes / rows) / 64)) * 64
      open[t.expert or "all"] = nil
      products[#products + 1] = { role = t.role, rows = rows, width = t.shape[2], expert = t.expert,
        tiles = add_tiles(layout, model, t.name, math.ceil(rows / math.ceil(rows / fit) / 64) * 64) }
    end
  end
  return products
end

-- What passes through the slots: {units (for onn.core.stream), bytes (of each), slot (bytes of one), of = {[stage's position] = unit},
-- tiles = {[position of the head] = {{unit, first}}}, rounded (bytes of a head's tile in the arithmetic's dtype, where it is stored in
-- another)}. With `tile`, bytes, blocks are cut into units of about that size: instead of `of` there is
-- products = {[position] = {{role, rows, width, tiles}}}, in the order of the products.
function Ring.layout(model, chunk, tile)
  local layout = { units = {}, of = {}, tiles = {}, bytes = {}, products = {} }
  local largest, members = tile or 0, chunk
  for i, stage in ipairs(model.stages) do
    local whole = stage.kind ~= "embedding" and stage.kind ~= "head" and #matrices(stage) > 0
    if whole and tile then
      layout.products[i] = add_products(layout, model, stage, tile)
    elseif whole then
      if members == chunk then
        members = 0
        add_unit(layout, 0)
      end
      local unit = #layout.units
      members = members + 1
      for _, t in ipairs(matrices(stage)) do
        table.insert(layout.units[unit], { name = t.name })
        layout.bytes[unit] = layout.bytes[unit] + stored_bytes(model, t.name)
      end
      layout.of[i] = unit
      largest = math.max(largest, layout.bytes[unit])
    elseif stage.kind == "head" then -- as many whole cuts of its loss as a block's unit is large
      local name = head_tensor(stage)
      local info, rows = model.store:info(name), core.head_cut * math.max(1, math.floor(largest / head_cut(model, name)))
      layout.tiles[i] = add_tiles(layout, model, name, rows)
      if model.dtype == "bf16" and info.dtype ~= "BF16" then -- the head's loss takes its weight in the arithmetic's dtype
        layout.rounded = math.min(rows, info.shape[1]) * info.shape[2] * 2 + 2 ^ 16 -- and what the allocator adds
      end
    end
  end
  layout.slot = streams.bytes(model.store, layout.units)
  return layout
end

-- Bytes of a stage's largest expert; 0 without any.
local function expert_bytes(model, stage)
  local bytes, largest = {}, 0
  for _, t in ipairs(matrices(stage)) do
    local owner = t.stacked or t.expert
    if owner then bytes[owner] = (bytes[owner] or 0) + stored_bytes(model, t.name) / (t.stacked and t.shape[1] or 1) end
  end
  for _, n in pairs(bytes) do largest = math.max(largest, n) end
  return largest
end

-- Sizes of tiles worth trying, in bytes, largest first: no slot is smaller than a cut of the head. None where a stage uses weights otherwise
-- than in products (`untiled`).
function Ring.tile_sizes(model)
  for _, stage in ipairs(model.stages) do if stage.untiled then return {} end end
  local largest, expert, least = 0, 0, 0
  for _, stage in ipairs(model.stages) do
    local blocks = stage.kind == "block" and matrices(stage) or {}
    for _, t in ipairs(blocks) do largest = math.max(largest, stored_bytes(model, t.name) / (t.stacked and t.shape[1] or 1)) end
    expert = math.max(expert, #blocks > 0 and expert_bytes(model, stage) or 0)
    if stage.kind == "head" then least = head_cut(model, head_tensor(stage)) end
  end
  local sizes, tried = {}, { largest, largest / 4, 8e6, 1e6, expert > 0 and expert or nil }
  table.sort(tried, function(a, b) return a > b end)
  for _, size in ipairs(tried) do
    size = math.max(size, least)
    if not sizes[1] or size < sizes[#sizes] then sizes[#sizes + 1] = size end
  end
  return sizes
end

-- A weight that passes in row tiles (onn.row_tiles).
local function tiled_weight(self, product)
  local first = { product.tiles[1] }
  return { out = product.rows, into = product.width, pull = function(f, only) self:pull(only and first or product.tiles, f) end }
end

-- A tensor of the ring as the products take it.
local function oriented(t, weight) return t.transposed and tensors.keep(weight:transpose(1, 2)) or weight end

-- A product's tile as a matrix; one of stacked experts is (1, out, in).
local function matrix_of(product, piece)
  return oriented(product, product.stacked and tensors.keep(piece:select(1, 1)) or piece)
end

-- Gives each stage of a model handles for its weights, which have memory only while the stage is held. Returns true, or nil, message,
-- code.
local function bind(self)
  local model, at = self.model, {}
  for unit in ipairs(self.layout.units) do at[unit] = { list = self.stream:tensors(unit), next = 1 } end
  for i, stage in ipairs(model.stages) do
    local weights = {}
    stage.weights = weights
    for _, t in ipairs(stage.tensors) do
      if t.vector then
        local value, message, code = model:read(t, t.dtype or "f32")
        if not value then return nil, message, code end
        weights[t.role] = tensors.keep(value)
      end
    end
    if stage.kind == "embedding" then
      for _, t in ipairs(matrices(stage)) do
        weights[t.role] = { rows = function(ids)
          local rows, message = model.store:read_rows(t.name, ids)
          if not rows then error(message, 0) end
          return model.dtype == "bf16" and rows:to "bf16" or rows -- as a resident embedding is kept
        end }
      end
    elseif self.layout.of[i] then
      local unit = at[self.layout.of[i]]
      for _, t in ipairs(matrices(stage)) do weights[t.role], unit.next = oriented(t, unit.list[unit.next]), unit.next + 1 end
    end
    for _, product in ipairs(self.layout.products[i] or {}) do
      for _, tile in ipairs(product.tiles) do tile.weight = matrix_of(product, self.stream:tensors(tile.unit)[tile.piece]) end
      if product.stacked then
        local list = weights[product.role] or {}
        weights[product.role], list[product.expert + 1] = list, tiled_weight(self, product)
      else
        weights[product.role] = tiled_weight(self, product)
      end
    end
    for _, tile in ipairs(self.layout.tiles[i] or {}) do tile.weight = self.stream:tensors(tile.unit)[tile.piece] end
    for _, layer in ipairs(stage.layers) do
      layer.weight, layer.bias = weights[layer.role], weights[layer.role .. "_bias"]
      weights[layer.role] = layer
    end
  end
  return true
end

-- opt: slots, chunk (1), tile (bytes, where blocks are cut), prefetch (true), direct (true: past the page cache). Returns the ring, its
-- model's stages bound; or nil, message, code.
function Ring.open(model, opt)
  local self = setmetatable({ model = model, layout = Ring.layout(model, opt.chunk or 1, opt.tile), keep = {}, holding = {} }, Ring)
  local message, code
  self.stream, message, code = streams.open(model.store, { units = self.layout.units, slots = math.min(opt.slots, #self.layout.units),
    prefetch = opt.prefetch ~= false, direct = opt.direct ~= false })
  if not self.stream then return nil, message, code end
  self.stream:events(trace.on)
  local bound
  bound, message, code = bind(self)
  if bound then return self end
  self.stream:close()
  return nil, message, code
end

local function add_uses(units, tiles)
  for _, tile in ipairs(tiles or {}) do units[#units + 1] = tile.unit end
end

-- The units that visits of stages use, in order. A visit is {at (the stage's position), times (micro-batches that pass, each by itself),
-- tokens (of each; nil: many), forward, backward (is it passed this way; both: its tape is rebuilt)}. Experts that are cut out of their
-- block and hardly used with so few tokens are left out: they are read when they are asked for.
function Ring.uses(layout, visits)
  local units = {}
  for _, visit in ipairs(visits) do
    local products = layout.products[visit.at]
    local seldom_used = products and seldom(products.routed, visit.tokens)
    units[#units + 1] = layout.of[visit.at]
    add_uses(units, layout.tiles[visit.at])
    for _ = 1, products and visit.times or 0 do
      local function add(k) if not (seldom_used and products[k].expert) then add_uses(units, products[k].tiles) end end
      for k = 1, visit.forward and #products or 0 do add(k) end
      for k = visit.backward and #products or 0, 1, -1 do add(k) end
    end
  end
  return units
end

-- Which units stay in their slots, as a set and its size, where `units` (uses in order) do not all fit: of those that are used on the way
-- forward and back all slots but two, evenly spread, so that what is read in between comes while they are computed.
function Ring.kept(layout, units, slots)
  local times, twice, kept = {}, {}, {}
  for _, unit in ipairs(units) do
    times[unit] = (times[unit] or 0) + 1
    if times[unit] == 2 then twice[#twice + 1] = unit end
  end
  local different = 0
  for _ in pairs(times) do different = different + 1 end
  local count = math.min(slots - 2, #twice)
  if count < 1 or different <= slots or next(layout.products) then return kept, 0 end
  table.sort(twice)
  for k = 1, count do kept[twice[math.floor((k - 0.5) * #twice / count) + 1]] = true end
  return kept, count
end

-- Says which stages will be visited, from now on and then again and again, so that they are read ahead.
function Ring:schedule(visits)
  local units = Ring.uses(self.layout, visits)
  local text = table.concat(units, ",")
  if text == self.scheduled then return end
  self.scheduled = text
  local kept, count = Ring.kept(self.layout, units, self.stream:stats().slots)
  if count > 0 then
    for unit in pairs(self.holding) do if not kept[unit] then self.stream:release(unit) end end
    local holding = {}
    for unit in pairs(self.holding) do holding[unit] = kept[unit] end
    self.keep, self.holding = kept, holding
  end
  self.stream:schedule(units)
end

-- Read events of the stream, as spans of the trace.
local function traced(self)
  if not trace.on then return end
  for _, e in ipairs(self.stream:events()) do
    local unit, began, ended, bytes = unpack(e)
    local piece = self.layout.units[unit][1]
    trace.span(piece.name:match "^(.-%d+)%." or piece.name, "read", began, { bytes = bytes }, ended, 2)
  end
end

local function acquire(self, unit)
  local began = trace.now()
  local ok, message = self.stream:acquire(unit)
  if not ok then error(message, 0) end
  if self.keep[unit] and not self.holding[unit] then self.holding[unit] = self.stream:acquire(unit) end
  trace.span("wait", "wait", began)
end

-- Runs f while stage i's weights are in memory; an error lets them go and goes on.
function Ring:hold(i, f)
  local unit = self.layout.of[i]
  if not unit then return f() end
  acquire(self, unit)
  local ok, message = pcall(f)
  self.stream:release(unit)
  traced(self)
  if not ok then error(message, 0) end
end

-- f(weight, first row counted from 0) for each of some tiles, while it is in memory.
function Ring:pull(tiles, f)
  for _, tile in ipairs(tiles) do
    acquire(self, tile.unit)
    local ok, message = pcall(f, tile.weight, tile.first)
    self.stream:release(tile.unit)
    traced(self)
    if not ok then error(message, 0) end
  end
end

-- The same for stage i's head; what f makes is freed.
function Ring:tiles(i, f)
  local dtype = self.layout.rounded and self.model.dtype
  self:pull(self.layout.tiles[i], function(weight, first)
    scope(function() f(dtype and weight:to(dtype) or weight, first) end)
  end)
end

function Ring:stats() return self.stream:stats() end

function Ring:close() self.stream:close() end

return Ring
