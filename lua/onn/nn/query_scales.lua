-- Factors of queries that grow with the position: 1 + by * log(1 + floor((position + from) / floor)), Llama 4's, or, where p has a power,
-- (1 + (position + from) / floor) ^ power, Beam's.
local tensors = require "onn.core.tensor"

local query_scales = {}

local function factor(p, position)
  local at = (position + p.from) / p.floor
  return p.power and (1 + at) ^ p.power or 1 + p.by * math.log(1 + math.floor(at))
end

-- A holder: upto(length) gives the table f32 (positions, 1) for at least `length` positions. p: floor, from, by or power.
function query_scales.new(p)
  local held = { span = 0 }
  function held:upto(length)
    if length > self.span then
      local span, rows = 256, {}
      while span < length do span = span * 2 end
      for at = 1, span do rows[at] = { factor(p, at - 1) } end
      self.table, self.span = tensors.keep(tensors.from_table(rows, "f32")), span
    end
    return self.table
  end
  function held:free()
    if self.table then self.table:free() end
    self.table, self.span = nil, 0
  end
  return held
end

return query_scales
