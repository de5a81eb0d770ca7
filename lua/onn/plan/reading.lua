-- What is read of a model whose weights pass through a ring: the order of its stages, the ways to cut it, and the bytes of a step.
local reading = {}

-- Rates where nobody has measured any: they only order the candidates.
reading.unknown_rates = { product = 5e11, pass = 1e10, copy = 1e10, disk = function() return 1e9 end, write = function() return 5e8 end }

-- Visits of the stages in the order in which a step makes them; see onn.sweep and Ring.uses. how: from (position of the first stage),
-- micros, heads (visits of the last stage); of the way back, if there is one: lowest (position), kept (blocks whose tapes are kept).
function reading.visits(model, how)
  local list, last = {}, #model.stages
  local function add(i, times, forward, backward)
    list[#list + 1] = { at = i, times = times, forward = forward, backward = backward }
  end
  for i = how.from, last - 1 do add(i, how.micros, true, false) end
  for _ = 1, how.heads do add(last, 1, true, false) end
  for i = last - 1, how.lowest or last, -1 do add(i, how.micros, i < last - how.kept, true) end
  return list
end

-- Bytes read through `slots` slots in the last of some rounds of the same uses, and of all units in them.
local function simulated(layout, units, slots, rounds)
  local _, loaded = require("onn.core.stream").simulate { units = #layout.units, slots = math.min(slots, #layout.units), schedule = units,
    rounds = rounds }
  local bytes, once, met = 0, 0, {}
  for _, unit in ipairs(loaded) do bytes = bytes + layout.bytes[unit] end
  for _, unit in ipairs(units) do
    once = once + (met[unit] and 0 or layout.bytes[unit])
    met[unit] = true
  end
  return bytes, once
end

-- How a stage is cut, as text: stages with the same are read alike.
local function cut_of(layout, at)
  local parts = { layout.tiles[at] and "head" or "" }
  for _, product in ipairs(layout.products[at] or {}) do parts[#parts + 1] = ("%dx%d in %d"):format(product.rows, product.width, #product.tiles) end
  return table.concat(parts, ",")
end

-- What a step reads through `slots` slots once it has settled: bytes. Remembers what it has worked out.
function reading.reader(model, layout)
  local Ring, known, alike = require "onn.ring", {}, {}
  local function whole(how, slots)
    local units, passing = Ring.uses(layout, reading.visits(model, how)), {}
    local kept, count = Ring.kept(layout, units, math.min(slots, #layout.units))
    for _, unit in ipairs(units) do if not kept[unit] then passing[#passing + 1] = unit end end
    return #passing > 0 and simulated(layout, passing, slots - count, 3) or 0
  end
  -- Row tiles: each micro-batch reads again what of the stage the slots have not kept; between visits nothing is counted as kept.
  local function visit(v, slots)
    local units = Ring.uses(layout, { { at = v.at, times = 1, forward = v.forward, backward = v.backward } })
    local again, once = simulated(layout, units, slots, 3)
    return { again = again, first = math.max(again, once) }
  end
  local function tiled(how, slots)
    local bytes = 0
    for _, v in ipairs(reading.visits(model, how)) do
      if (layout.products[v.at] or layout.tiles[v.at]) and v.times > 0 then
        alike[v.at] = alike[v.at] or cut_of(layout, v.at)
        local key = ("%d/%s/%s/%s"):format(slots, alike[v.at], v.forward, v.backward)
        known[key] = known[key] or visit(v, slots)
        bytes = bytes + known[key].first + (v.times - 1) * known[key].again
      end
    end
    return bytes
  end
  return function(how, slots)
    local key = table.concat({ slots, how.from, how.micros, how.heads, how.lowest or "", how.kept or "" }, "/")
    if not known[key] then known[key] = (next(layout.products) and tiled or whole)(how, slots) end
    return known[key]
  end
end

-- Ways to cut a model for the ring, coarsest first: so many blocks to a unit, then row tiles of so many bytes.
function reading.cuts(model, opt)
  local list, chunk, units = {}, opt.chunk or 1, 0
  for _, stage in ipairs(model.stages) do units = units + (stage.kind ~= "embedding" and stage.kind ~= "head" and 1 or 0) end
  if chunk >= units then chunk = 1 end -- a settings file says so that nothing was streamed
  while chunk >= 1 do list[#list + 1], chunk = { chunk = chunk }, math.floor(chunk / 2) end
  for _, size in ipairs(require("onn.ring").tile_sizes(model)) do list[#list + 1] = { tile = size } end
  return list
end

return reading
