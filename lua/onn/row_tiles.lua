-- Products with a weight that is larger than what may be in memory: it comes in tiles of its rows, one after another. Such a weight is
-- {out, into, pull}; pull(f, first) calls f(tile, row), row the tile's first counted from 0, for each tile in turn, or for the first
-- alone (onn.ring). The functions are those of onn.core.ops, and so is every bit of what they give.
local core = require "onn.core.ops"
local tensors = require "onn.core.tensor"

local row_tiles = {}

local narrow, copy = tensors.class.narrow, tensors.class.copy -- the core's own: onn.tensor puts recorded ones in their place

-- Who multiplies by w: the core, or this module.
function row_tiles.products(w) return type(w) == "table" and row_tiles or core end

local function rows_of(t, tile, row) return t and narrow(t, 1, row + 1, tile:size(1)) end
local function columns_of(t, tile, row) return narrow(t, #t:shape(), row + 1, tile:size(1)) end

-- The shape of `like` with rows of another width.
local function shape_of(like, width)
  local shape = like:shape()
  shape[#shape] = width
  return shape
end

-- -> y [, h]
function row_tiles.linear(x, w, bias, a, b, scale, apart, dtype)
  local y, h = tensors.new(dtype or x:dtype(), shape_of(x, w.out)), nil
  w.pull(function(tile, row)
    if h then h:free() end -- the same for every tile
    h = select(2, core.linear(x, tile, rows_of(bias, tile, row), a, rows_of(b, tile, row), scale, apart, nil, columns_of(y, tile, row)))
  end)
  return y, h
end

-- -> y
function row_tiles.linear_decode(x, w, bias, a, b, scale, dtype)
  local y = tensors.new(dtype or x:dtype(), shape_of(x, w.out))
  w.pull(function(tile, row)
    core.linear_decode(x, tile, rows_of(bias, tile, row), a, rows_of(b, tile, row), scale, nil, columns_of(y, tile, row))
  end)
  return y
end

-- -> dx, dh, dropped. dx is summed in f32 over the tiles in order, the adapter's part with the first, and rounded once. Without dx
-- nothing of the weight is used but its shape.
function row_tiles.linear_backward(dy, w, a, b, scale, dx, split, skip)
  local sum, dh, dropped = dx, nil, nil
  if not skip and not dx then
    sum = tensors.zeros("f32", shape_of(dy, w.into))
  elseif not skip and dx:dtype() ~= "f32" then
    sum = dx:to "f32"
  end
  w.pull(function(tile, row)
    local part = columns_of(dy, tile, row)
    if row > 0 then
      core.linear_backward(part, tile, nil, nil, nil, sum)
    else
      dh, dropped = select(2, core.linear_backward(part, tile, a, b, scale, sum, split, skip, dy))
    end
  end, skip)
  if skip or sum:dtype() == (dx or dy):dtype() then return sum, dh, dropped end
  local rounded = dx and copy(dx, sum) or sum:to(dy:dtype())
  sum:free()
  return rounded, dh, dropped
end

return row_tiles
