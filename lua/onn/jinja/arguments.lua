-- Binding call arguments to named parameters, for methods, filters and global functions.
local fault = require "onn.jinja.fault"
local values = require "onn.jinja.values"

local arguments = {}

-- bind(what, names, args, kwargs): the values in the order of `names` (nil where not given), unpacked. Too many or unknown
-- arguments are a fault that names `what`.
function arguments.bind(what, names, args, kwargs)
  if #args > #names then fault.raise(("%s takes at most %d arguments, got %d"):format(what, #names, #args)) end
  local bound, known = {}, {}
  for i, name in ipairs(names) do
    bound[i] = args[i]
    if bound[i] == nil then bound[i] = kwargs[name] end
    known[name] = true
  end
  for name in pairs(kwargs) do
    if not known[name] then fault.raise(("%s has no argument '%s'"):format(what, name)) end
  end
  return unpack(bound, 1, #names)
end

-- text_of(what, v): v, which must be a text.
function arguments.text_of(what, v)
  if type(v) ~= "string" then
    if v ~= nil then values.defined(v) end
    fault.raise(("%s needs a text, not %s"):format(what, v == nil and "nothing" or values.type(v)))
  end
  return v
end

-- whole_of(what, v, default): a whole number; the default for nothing or none.
function arguments.whole_of(what, v, default)
  if (v == nil or v == values.none) and default ~= nil then return default end
  local n, is_float = nil, nil
  if v ~= nil then n, is_float = values.number(values.defined(v)) end
  if not n or is_float then
    fault.raise(("%s needs a whole number, not %s"):format(what, v == nil and "nothing" or values.type(v)))
  end
  return n
end

return arguments
