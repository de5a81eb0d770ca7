-- The ring: how the weights of a model larger than memory pass through it. Matrices of `chunk` consecutive blocks make a unit, the head
-- is cut into row tiles, and units come and go through equal slots in the order in which the sweeps visit them (host/stream.c).
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

-- Rows of the head that pass together: whole cuts of its loss, as many as a block's unit is large.
local function tile_rows(model, name, room)
  local info = model.store:info(name)
  local cut = core.head_cut * info.bytes / info.shape[1]
  return core.head_cut * math.max(1, math.floor(room / cut))
end

-- What passes through the slots: {units (for onn.core.stream), of = {[stage's position] = unit}, tiles = {[position] = {{unit, first}}},
-- bytes (of each unit), slot (bytes of one), rounded (bytes of a row tile in the arithmetic's dtype, where it is stored in another)}.
function Ring.layout(model, chunk)
  local layout, largest = { units = {}, of = {}, tiles = {}, bytes = {} }, 0
  local unit, members = nil, 0
  for i, stage in ipairs(model.stages) do
    if stage.kind == "block" then
      if not unit or members == chunk then unit, members, layout.units[#layout.units + 1] = {}, 0, nil end
      if members == 0 then layout.units[#layout.units + 1], layout.bytes[#layout.units + 1] = unit, 0 end
      members = members + 1
      for _, t in ipairs(matrices(stage)) do
        unit[#unit + 1] = { name = t.name }
        layout.bytes[#layout.units] = layout.bytes[#layout.units] + stored_bytes(model, t.name)
      end
      layout.of[i] = #layout.units
      largest = math.max(largest, layout.bytes[#layout.units])
    elseif stage.kind == "head" then
      local name, tiles = head_tensor(stage), {}
      local total, rows = model.store:info(name).shape[1], tile_rows(model, name, largest)
      for first = 0, total - 1, rows do
        local n = math.min(rows, total - first)
        layout.units[#layout.units + 1] = { { name = name, first = first, rows = n } }
        layout.bytes[#layout.units] = stored_bytes(model, name) / total * n
        tiles[#tiles + 1] = { unit = #layout.units, first = first }
      end
      layout.tiles[i] = tiles
      if model.dtype == "bf16" and model.store:info(name).dtype ~= "BF16" then -- the head's loss takes its weight in the arithmetic's dtype
        layout.rounded = math.min(rows, total) * model.store:info(name).shape[2] * 2
      end
    end
  end
  layout.slot = streams.bytes(model.store, layout.units)
  return layout
end

-- Gives each stage of a model handles for its weights, which have memory only while the stage is held.
local function bind(self)
  local model, at = self.model, {}
  for unit in ipairs(self.layout.units) do at[unit] = { list = self.stream:tensors(unit), next = 1 } end
  for i, stage in ipairs(model.stages) do
    local weights = {}
    for _, t in ipairs(stage.tensors) do
      if t.vector then weights[t.role] = tensors.keep(assert(model.store:read(t.name, "f32"))) end
    end
    if stage.kind == "embedding" then
      local name = matrices(stage)[1].name
      weights.embed = { rows = function(ids)
        local rows, message = model.store:read_rows(name, ids)
        if not rows then error(message, 0) end
        return model.dtype == "bf16" and rows:to "bf16" or rows -- as a resident embedding is kept
      end }
    elseif stage.kind == "block" then
      local unit = at[self.layout.of[i]]
      for _, t in ipairs(matrices(stage)) do weights[t.role], unit.next = unit.list[unit.next], unit.next + 1 end
    end
    stage.weights = weights
    for _, tile in ipairs(self.layout.tiles[i] or {}) do tile.weight = self.stream:tensors(tile.unit)[1] end
    for _, layer in ipairs(stage.layers) do
      layer.weight, layer.bias = weights[layer.role], weights[layer.role .. "_bias"]
      weights[layer.role] = layer
    end
  end
end

-- opt: slots, chunk (1), prefetch (true), direct (true: past the page cache). Returns the ring, its model's stages bound; or nil,
-- message, code.
function Ring.open(model, opt)
  local self = setmetatable({ model = model, layout = Ring.layout(model, opt.chunk or 1) }, Ring)
  local message, code
  self.stream, message, code = streams.open(model.store, { units = self.layout.units, slots = math.min(opt.slots, #self.layout.units),
    prefetch = opt.prefetch ~= false, direct = opt.direct ~= false })
  if not self.stream then return nil, message, code end
  self.stream:events(trace.on)
  bind(self)
  return self
end

-- The units that visits of stages (a list of positions) use, in order.
function Ring.uses(layout, visits)
  local units = {}
  for _, i in ipairs(visits) do
    if layout.of[i] then units[#units + 1] = layout.of[i] end
    for _, tile in ipairs(layout.tiles[i] or {}) do units[#units + 1] = tile.unit end
  end
  return units
end

-- Says which stages will be visited, from now on and then again and again, so that they are read ahead.
function Ring:schedule(visits)
  local units = Ring.uses(self.layout, visits)
  local text = table.concat(units, ",")
  if text ~= self.scheduled then self.stream:schedule(units) end
  self.scheduled = text
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

-- f(weight, first row counted from 0, total) for each row tile of stage i's head, while it is in memory.
function Ring:tiles(i, f)
  for _, tile in ipairs(self.layout.tiles[i]) do
    acquire(self, tile.unit)
    local ok, message = pcall(scope, function()
      f(self.layout.rounded and tile.weight:to(self.model.dtype) or tile.weight, tile.first)
    end)
    self.stream:release(tile.unit)
    traced(self)
    if not ok then error(message, 0) end
  end
end

function Ring:stats() return self.stream:stats() end

function Ring:close() self.stream:close() end

return Ring
