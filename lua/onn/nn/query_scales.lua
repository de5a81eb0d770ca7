-- Factors of queries that grow with the position: 1 + by * log(1 + floor((position + from) / floor)), Llama 4's, or, where p has a power,
-- (1 + (position + from) / floor) ^ power, Beam's.
local grown_table = require "onn.nn.grown_table"

local query_scales = {}

local function factor(p, position)
  local at = (position + p.from) / p.floor
  return p.power and (1 + at) ^ p.power or 1 + p.by * math.log(1 + math.floor(at))
end

-- A holder (onn.nn.grown_table) of f32 (positions, 1). p: floor, from, by or power.
function query_scales.new(p)
  return grown_table.new(function(span)
    local rows = {}
    for at = 1, span do rows[at] = { factor(p, at - 1) } end
    return rows
  end, function(span) return { span, 1 } end)
end

return query_scales
