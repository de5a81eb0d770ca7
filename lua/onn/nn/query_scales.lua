-- Factors of queries that grow with the position (Llama 4's): 1 + by * log(1 + floor((position + from) / floor)).
local tensors = require "onn.core.tensor"

local query_scales = {}

-- A holder: upto(length) gives the table f32 (positions, 1) for at least `length` positions. p: floor, by, from.
function query_scales.new(p)
  local held = { span = 0 }
  function held:upto(length)
    if length > self.span then
      local span, rows = 256, {}
      while span < length do span = span * 2 end
      for at = 1, span do rows[at] = { 1 + p.by * math.log(1 + math.floor((at - 1 + p.from) / p.floor)) } end
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
