-- A product with a stored weight (out, in), its bias, and the adapter that may sit on it.
local ops = require "onn.ops"
local row_tiles = require "onn.row_tiles"

-- layer {weight (one of onn.row_tiles, too), bias, adapter}; x (..., in) -> (..., out). ctx.decode: the product for few rows, by phase and not by size.
-- dtype: of the result, x's if absent.
return function(layer, x, ctx, dtype)
  local adapter = layer.adapter
  local a, b, scale = nil, nil, nil
  if adapter then a, b, scale = adapter.a, adapter.b, adapter.scale end
  if ctx.decode then return row_tiles.products(layer.weight).linear_decode(x, layer.weight, layer.bias, a, b, scale, dtype) end
  local apart
  if adapter and adapter.dropout > 0 and ctx.training then
    local site = ("%s/dropout/%d"):format(adapter.name, ctx.epoch or 0)
    apart = ops.dropout(x, adapter.dropout, { seed = ctx.seed, site = site, counter = 0 }, ctx.rows)
  end
  return (ops.linear(x, layer.weight, layer.bias, a, b, apart, scale, dtype))
end
