-- ALiBi (arXiv 2108.12409): biases of attention scores that fall with the distance, slope of a head x (key - query).
local grown_table = require "onn.nn.grown_table"

local alibi = {}

-- The slope of head h of `heads`, from 1: powers of 2^(-8 / n) for the largest power of two n; the heads beyond it take the odd powers
-- of its root.
local function slope(h, heads)
  local n = 1
  while n * 2 <= heads do n = n * 2 end
  if h <= n then return 2 ^ (-8 * h / n) end
  return 2 ^ (-4 * (2 * (h - n) - 1) / n)
end

-- A holder: upto(length) gives the table f32 (heads, distances) of onn.ops.attention and where distance 0 stands in it, for sequences of
-- at least `length` tokens. scale: what every slope is multiplied by (1).
function alibi.new(heads, scale)
  local held = grown_table.new(function(span)
    local rows = {}
    for h = 1, heads do
      rows[h] = {}
      for d = 1, span do rows[h][d] = slope(h, heads) * (scale or 1) * (d - span) end
    end
    return rows
  end, function(span) return { heads, span } end)
  local upto = held.upto
  function held:upto(length)
    local table, span = upto(self, length)
    return table, span - 1
  end
  return held
end

return alibi
