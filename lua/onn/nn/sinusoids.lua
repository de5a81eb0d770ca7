-- Fixed positions of the transformer's first paper (arXiv 1706.03762): sines, then cosines, of the position over 10000^(i / steps).
local tensors = require "onn.core.tensor"

local sinusoids = {}

-- A holder: upto(length) gives the table f32 (positions, width) for at least `length` positions. p: steps, offset (added to positions),
-- empty (a row, the offset counted, that is zero).
function sinusoids.new(p, width)
  local held = { span = 0 }
  function held:upto(length)
    if length > self.span then
      local span, half, rows = 256, width / 2, {}
      while span < length do span = span * 2 end
      for at = 1, span do
        local row, position = {}, at - 1 + p.offset
        for i = 1, half do
          local angle = position / 10000 ^ ((i - 1) / p.steps)
          row[i], row[half + i] = math.sin(angle), math.cos(angle)
        end
        if position == p.empty then for i = 1, width do row[i] = 0 end end
        rows[at] = row
      end
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

return sinusoids
