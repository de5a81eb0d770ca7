-- What is read of a model whose weights pass through a ring: the order of its stages, the ways to cut it, and the bytes of a step.
local reading = {}

-- Rates where nobody has measured any: they only order the candidates.
reading.unknown_rates = { product = 5e11, pass = 1e10, copy = 1e10, disk = function() return 1e9 end, write = function() return 5e8 end }

-- Visits of the stages in the order in which a step makes them; see onn.sweep and Ring.uses. how: from (position of the first stage),
-- micros, heads (visits of the last stage), tokens (of a micro-batch; nil: many); of the way back, if there is one: lowest (position),
-- kept (blocks whose tapes are kept).
function reading.visits(model, how)
  local list, last = {}, #model.stages
  local function add(i, times, forward, backward)
    list[#list + 1] = { at = i, times = times, tokens = how.tokens, forward = forward, backward = backward }
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
    local units = Ring.uses(layout, { { at = v.at, times = 1, tokens = v.tokens, forward = v.forward, backward = v.backward } })
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
  -- Experts that are read when they are asked for: what is likely of them, less what the slots still hold; and all the rest.
  local function asked_for(how, slots)
    local visits, distinct, experts, likely = reading.visits(model, how), {}, {}, 0
    local rest = Ring.uses(layout, visits)
    for _, unit in ipairs(rest) do distinct[unit] = true end
    local left = slots
    for _ in pairs(distinct) do left = left - 1 end
    for _, v in ipairs(visits) do
      local products = layout.products[v.at] or {}
      for _, product in ipairs(products) do
        for _, tile in ipairs(product.expert and product.tiles or {}) do
          if not experts[tile.unit] then experts[#experts + 1] = tile.unit end
          experts[tile.unit] = true
          if tile.piece == 1 then likely = likely + v.times * Ring.chance(products.routed, how.tokens) * layout.bytes[tile.unit] end
        end
      end
    end
    return simulated(layout, rest, math.max(1, slots - 1), 3) + likely * (1 - math.min(1, math.max(0, left - 1) / #experts))
  end
  return function(how, slots)
    local key = table.concat({ slots, how.from, how.micros, how.heads, how.tokens or "", how.lowest or "", how.kept or "" }, "/")
    if not known[key] then
      local way = not next(layout.products) and whole or Ring.seldom(model, how.tokens) and asked_for or tiled
      known[key] = way(how, slots)
    end
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
