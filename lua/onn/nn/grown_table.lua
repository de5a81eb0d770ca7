-- Tables by position that grow on demand: grown_table.new(make, shape).
--   make(span)  -> a list of rows for `span` positions
--   shape(span) -> what the tensor of those has, f32
-- Returns a holder: upto(length) gives the table for at least `length` positions, and its span (256 doubled until it holds them). A table
-- given before stays as it was. In a dry run (onn.dry) each call makes a phantom of its own: what was made there cannot be kept.
local tensors = require "onn.core.tensor"

local grown_table = {}

function grown_table.new(make, shape)
  local held = { span = 0 }
  function held:upto(length)
    local span = 256
    while span < length do span = span * 2 end
    if tensors.is_dry() then return tensors.new("f32", shape(span)), span end
    if span > self.span then self.table, self.span = tensors.keep(tensors.from_table(make(span), "f32")), span end
    return self.table, self.span
  end
  function held:free()
    if self.table then self.table:free() end
    self.table, self.span = nil, 0
  end
  return held
end

return grown_table
