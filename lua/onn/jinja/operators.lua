-- Arithmetic, comparison and slices, by Python's rules.
local fault = require "onn.jinja.fault"
local text = require "onn.jinja.text"
local values = require "onn.jinja.values"

local operators = { arithmetic = {}, comparison = {} }
local arithmetic, comparison = operators.arithmetic, operators.comparison

local function mismatch(op, a, b)
  values.defined(a)
  values.defined(b)
  fault.raise(("'%s' cannot take %s and %s"):format(op, values.type(a), values.type(b)))
end

-- Both operands as numbers, and whether the result is a float.
local function numbers(op, a, b)
  local x, x_float = values.number(a)
  local y, y_float = values.number(b)
  if not x or not y then mismatch(op, a, b) end
  return x, y, x_float or y_float
end

local function result(value, is_float) return is_float and values.float(value) or values.integer(value) end

local function joined_lists(machine, a, b)
  machine:spend(#a + #b)
  local items = {}
  for _, item in ipairs(a) do items[#items + 1] = item end
  for _, item in ipairs(b) do items[#items + 1] = item end
  return setmetatable(items, getmetatable(a))
end

arithmetic["+"] = function(machine, a, b)
  if type(a) == "string" and type(b) == "string" then
    machine:room(#a + #b)
    return a .. b
  end
  if values.is_sequence(a) and getmetatable(a) == getmetatable(b) then return joined_lists(machine, a, b) end
  local x, y, is_float = numbers("+", a, b)
  return result(x + y, is_float)
end

arithmetic["-"] = function(_, a, b)
  local x, y, is_float = numbers("-", a, b)
  return result(x - y, is_float)
end

local function repeated(machine, a, count)
  count = math.max(count, 0)
  if type(a) == "string" then
    machine:room(#a * count)
    return #a > 0 and a:rep(count) or ""
  end
  machine:spend(#a * count)
  local items = {}
  for _ = 1, #a > 0 and count or 0 do
    for _, item in ipairs(a) do items[#items + 1] = item end
  end
  return setmetatable(items, getmetatable(a))
end

arithmetic["*"] = function(machine, a, b)
  local function repeats(v) return type(v) == "string" or values.is_sequence(v) end
  if repeats(b) then a, b = b, a end
  local count, is_float = values.number(b)
  if repeats(a) and count and not is_float then return repeated(machine, a, count) end
  local x, y
  x, y, is_float = numbers("*", a, b)
  return result(x * y, is_float)
end

local function divisor(y)
  if y == 0 then fault.raise "division by zero" end
end

arithmetic["/"] = function(_, a, b)
  local x, y = numbers("/", a, b)
  divisor(y)
  return values.float(x / y)
end

arithmetic["//"] = function(_, a, b)
  local x, y, is_float = numbers("//", a, b)
  divisor(y)
  return result(math.floor(x / y), is_float)
end

arithmetic["%"] = function(machine, a, b)
  if type(a) == "string" then return operators.format(machine, a, values.is_tuple(b) and b or { b }) end
  local x, y, is_float = numbers("%", a, b)
  divisor(y)
  return result(x - math.floor(x / y) * y, is_float)
end

arithmetic["**"] = function(_, a, b)
  local x, y, is_float = numbers("**", a, b)
  if x == 0 and y < 0 then divisor(0) end
  return result(x ^ y, is_float or y < 0)
end

function operators.sign(op, v)
  local x, is_float = values.number(v)
  if not x then
    values.defined(v)
    fault.raise(("'%s' cannot take %s"):format(op, values.type(v)))
  end
  return result(op == "-" and -x or x, is_float)
end

-- format(pattern, args): printf's %s %r %d %i %f %g %e %x %% with flags, width and precision of at most two digits.
function operators.format(machine, pattern, args)
  local used = 0
  local made = pattern:gsub("%%([-+ #0]*)(%d*)(%.?%d*)(.?)", function(flags, width, precision, kind)
    if kind == "%" then return "%" end
    used = used + 1
    local v = args[used]
    if v == nil then fault.raise "not enough arguments for a format" end
    if #width > 2 or #precision > 3 or #flags > 3 then fault.raise "a format asks for more than 99 characters" end
    if kind == "s" or kind == "r" then
      local s = kind == "s" and values.string(v) or values.repr(v)
      if precision ~= "" then s = table.concat(text.chars(s), "", 1, math.min(tonumber(precision:sub(2)) or 0, text.length(s))) end
      local pad = (" "):rep((tonumber(width) or 0) - text.length(s))
      return flags:find("-", 1, true) and s .. pad or pad .. s
    end
    local n = values.number(v)
    if not n then fault.raise(("a format of kind '%s' cannot take %s"):format(kind, values.type(v))) end
    if kind == "i" then kind = "d" end
    if not kind:find("^[dxXfFgGeE]") then fault.raise("unknown format '%" .. kind .. "'") end
    if kind == "d" then n = n < 0 and math.ceil(n) or math.floor(n) end
    return (("%" .. flags .. width .. precision .. kind):format(n))
  end)
  if used < #args then fault.raise "too many arguments for a format" end
  return machine:made(made)
end

comparison["=="] = function(_, a, b) return values.equal(a, b) end
comparison["!="] = function(_, a, b) return not values.equal(a, b) end
comparison["<"] = function(_, a, b) return values.less(a, b) end
comparison[">"] = function(_, a, b) return values.less(b, a) end
comparison["<="] = function(_, a, b) return not values.less(b, a) end
comparison[">="] = function(_, a, b) return not values.less(a, b) end

comparison["in"] = function(machine, part, whole)
  if type(whole) == "string" then
    values.defined(part)
    if type(part) ~= "string" then fault.raise("a text cannot contain " .. values.type(part)) end
    machine:search(whole, part)
    return whole:find(part, 1, true) ~= nil
  end
  if values.is_dict(whole) then return values.get(whole, part) ~= nil end
  local items = values.items(whole)
  machine:spend(#items)
  for _, item in ipairs(items) do
    if values.equal(item, part) then return true end
  end
  return false
end
comparison["not in"] = function(machine, part, whole) return not comparison["in"](machine, part, whole) end

local function whole_number(v, default)
  if v == nil or values.is_none(v) then return default end
  local n, is_float = values.number(v)
  if not n or is_float then
    values.defined(v)
    fault.raise("a slice needs whole numbers, not " .. values.type(v))
  end
  return n
end

-- slice(v, bounds): v[start:stop:step] of a text or list.
function operators.slice(machine, v, bounds)
  values.defined(v)
  local is_text = type(v) == "string"
  if not is_text and not values.is_sequence(v) then return values.undefined("a slice of " .. values.type(v)) end
  local items = is_text and text.chars(v) or v
  machine:spend(#items)
  local n, step = #items, whole_number(bounds.step, 1)
  if step == 0 then fault.raise "a slice's step is 0" end
  local low, high = step > 0 and 0 or -1, step > 0 and n or n - 1
  local function clamp(bound, default)
    local i = whole_number(bound, default)
    if bound ~= nil and not values.is_none(bound) and i < 0 then i = i + n end
    return math.max(low, math.min(high, i))
  end
  local first, last = clamp(bounds.start, step > 0 and 0 or n - 1), clamp(bounds.stop, step > 0 and n or -1)
  local kept = {}
  for i = first, last + (step > 0 and -1 or 1), step do kept[#kept + 1] = items[i + 1] end
  if is_text then return machine:made(table.concat(kept)) end
  return setmetatable(kept, getmetatable(v))
end

return operators
