-- Fixed positions of the transformer's first paper (arXiv 1706.03762): sines, then cosines, of the position over 10000^(i / steps).
local grown_table = require "onn.nn.grown_table"

local sinusoids = {}

local function row_of(p, width, position)
  local row, half = {}, width / 2
  for i = 1, half do
    local angle = position / 10000 ^ ((i - 1) / p.steps)
    row[i], row[half + i] = math.sin(angle), math.cos(angle)
  end
  if position == p.empty then for i = 1, width do row[i] = 0 end end
  return row
end

-- A holder (onn.nn.grown_table) of f32 (positions, width). p: steps, offset (added to positions), empty (a row, the offset counted, that
-- is zero).
function sinusoids.new(p, width)
  return grown_table.new(function(span)
    local rows = {}
    for at = 1, span do rows[at] = row_of(p, width, at - 1 + p.offset) end
    return rows
  end, function(span) return { span, width } end)
end

return sinusoids
