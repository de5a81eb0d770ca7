-- The filters behind `|`: name -> function(machine, value, args, kwargs).
local arguments = require "onn.jinja.arguments"
local dump = require "onn.jinja.dump"
local fault = require "onn.jinja.fault"
local methods = require "onn.jinja.methods"
local operators = require "onn.jinja.operators"
local text = require "onn.jinja.text"
local values = require "onn.jinja.values"
local bind, text_of, whole_of = arguments.bind, arguments.text_of, arguments.whole_of

local filters = {}

-- def("name parameter ...", f): f(machine, value, parameters...)
local function def(signature, f)
  local words = {}
  for word in signature:gmatch "%S+" do words[#words + 1] = word end
  local name = table.remove(words, 1)
  filters[name] = function(machine, v, args, kwargs) return f(machine, v, bind(name, words, args, kwargs)) end
end

-- Text filters take any value as its text.
local function def_text(signature, f)
  def(signature, function(machine, v, ...) return f(machine, machine:made(values.string(v)), ...) end)
end

local function given(v) return v ~= nil and v ~= values.none end

-- Texts ---------------------------------------------------------------------------------------------------------------------

def_text("string", function(_, s) return s end)
def_text("lower", function(_, s) return text.lower(s) end)
def_text("upper", function(_, s) return text.upper(s) end)
def_text("capitalize", function(_, s) return text.capitalize(s) end)
def_text("title", function(_, s)
  -- words begin after white space, hyphens and opening brackets only, unlike the method
  local list, inside = text.chars(s), false
  for i, c in ipairs(list) do
    if text.is_space(c) or c:find "^[-({%[<]$" then
      inside = false
    else
      list[i], inside = inside and text.lower(c) or text.upper(c), true
    end
  end
  return table.concat(list)
end)
def_text("trim chars", function(_, s, chars)
  return given(chars) and text.strip_set(s, text_of("trim", chars), true, true) or text.strip(s)
end)
def_text("replace old new count", function(machine, s, old, new, count)
  old, new = values.string(old or ""), values.string(new or "")
  count = given(count) and whole_of("replace", count) or nil
  if count and count < 0 then count = nil end
  machine:search(s, old)
  machine:room(#s + math.min(count or math.huge, text.occurrences(s, old)) * #new)
  return text.replace(s, old, new, count)
end)
def_text("escape", function(machine, s)
  local names = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ["'"] = "&#39;", ['"'] = "&#34;" }
  return machine:made((s:gsub("[&<>'\"]", names)))
end)
def_text("wordcount", function(_, s)
  local _, words = s:gsub("[%w_\128-\255]+", "")
  return words
end)
def_text("center width", function(machine, s, width)
  local missing = whole_of("center", width, 80) - text.length(s)
  if missing <= 0 then return s end
  machine:room(missing + #s)
  local left = math.floor(missing / 2) + (missing % 2) * (whole_of("center", width, 80) % 2)
  return (" "):rep(left) .. s .. (" "):rep(missing - left)
end)
def_text("indent width first blank", function(machine, s, width, first, blank)
  local pad = type(width) == "string" and width or (" "):rep(math.min(whole_of("indent", width, 4), 1000))
  local _, lines = s:gsub("\n", "")
  machine:room(#s + lines * #pad)
  local all = blank and values.truth(blank)
  local out = s:gsub("\n([^\n]*)", function(line) return "\n" .. ((all or line ~= "") and pad or "") .. line end)
  if first and values.truth(first) then out = pad .. out end
  return out
end)

function filters.format(machine, v, args, kwargs)
  if next(kwargs) then fault.raise "the filter format takes values by position only" end
  return operators.format(machine, values.string(v), args)
end

def("tojson indent ensure_ascii separators sort_keys", function(machine, v, indent, ensure_ascii, separators, sort_keys)
  local options = { ensure_ascii = ensure_ascii ~= nil and values.truth(ensure_ascii),
    sort_keys = sort_keys ~= nil and values.truth(sort_keys), item = ", ", colon = ": " }
  if given(indent) then
    if type(indent) == "string" and #indent > 100 then fault.raise "tojson's indent is longer than 100 bytes" end
    options.indent = type(indent) == "string" and indent or (" "):rep(math.min(math.max(0, whole_of("tojson", indent)), 100))
    options.item = ","
  end
  if given(separators) then
    local pair = values.items(separators)
    options.item, options.colon = text_of("tojson", pair[1]), text_of("tojson", pair[2])
  end
  return machine:made(dump.text(machine, v, options))
end)

-- Numbers -------------------------------------------------------------------------------------------------------------------

def("int default base", function(_, v, default, base)
  local n = values.number(v)
  if n == nil and type(v) == "string" then
    local s = text.strip(v):gsub("_", "")
    base = whole_of("int", base, 10)
    n = base == 10 and (s:find "^[-+]?%d+%.?%d*[eE]?[-+]?%d*$" and tonumber(s)) or tonumber(s, base)
  end
  if n == nil then return default == nil and 0 or default end
  return values.integer(n < 0 and math.ceil(n) or math.floor(n))
end)
def("float default", function(_, v, default)
  local n = values.number(v)
  if n == nil and type(v) == "string" and v:find "^%s*[-+]?[%d.]+[eE]?[-+]?%d*%s*$" then n = tonumber(v) end
  if n == nil then return default == nil and values.float(0) or default end
  return values.float(n)
end)
def("abs", function(_, v)
  local n, is_float = values.number(values.defined(v))
  if not n then fault.raise("abs needs a number, not " .. values.type(v)) end
  return is_float and values.float(math.abs(n)) or math.abs(n)
end)
-- The nearest number of so many decimals; where two are equally near, the even one.
local function rounded(n, precision)
  local scale = 10 ^ precision
  -- only what is a whole number of 2^-(precision + 1) can lie in the middle; n * scale is exact then
  if precision >= 0 and n * 2 ^ (precision + 1) % 1 ~= 0 then return tonumber(("%." .. precision .. "f"):format(n)) end
  local x = n * scale
  local low = math.floor(x)
  local half = x - low
  return ((half > 0.5 or (half == 0.5 and low % 2 == 1)) and low + 1 or low) / scale
end

def("round precision method", function(_, v, precision, method)
  local n, is_float = values.number(values.defined(v))
  if not n then fault.raise("round needs a number, not " .. values.type(v)) end
  precision = whole_of("round", precision, 0)
  if precision > 20 or precision < -20 then fault.raise "round's precision is beyond 20 digits" end
  local scale = 10 ^ precision
  if method == "ceil" or method == "floor" then return values.float(math[method](n * scale) / scale) end
  if is_float then return values.float(rounded(n, precision)) end
  return precision >= 0 and n or values.integer(rounded(n, precision))
end)

-- Helpers of the filters below ----------------------------------------------------------------------------------------------

-- Follows a dotted name ("function.name") or index into v.
local function follow(machine, v, path)
  if type(path) ~= "string" then return methods.item(machine, v, path) end
  for part in path:gmatch "[^.]+" do v = methods.item(machine, v, part:find "^%d+$" and tonumber(part) or part) end
  return v
end

-- sorted(machine, items, key, reverse): a stable sort into a new list.
local function sorted(machine, items, key, reverse)
  machine:spend(#items * 8)
  local order, keys = {}, {}
  for i, item in ipairs(items) do order[i], keys[i] = i, key(item) end
  local backwards = reverse ~= nil and values.truth(reverse)
  table.sort(order, function(a, b)
    if a == b then return false end
    if backwards then
      if values.less(keys[b], keys[a]) then return true end
      if values.less(keys[a], keys[b]) then return false end
    else
      if values.less(keys[a], keys[b]) then return true end
      if values.less(keys[b], keys[a]) then return false end
    end
    return a < b
  end)
  local list = {}
  for i, at in ipairs(order) do list[i] = items[at] end
  return values.list(list)
end

-- Anything ------------------------------------------------------------------------------------------------------------------

def("default default_value boolean", function(_, v, default, boolean)
  if values.is_undefined(v) or (boolean ~= nil and values.truth(boolean) and not values.truth(v)) then
    return default == nil and "" or default
  end
  return v
end)
def("length", function(machine, v)
  if type(v) == "string" then machine:spend(#v / 16) end
  return values.length(v)
end)
def("list", function(machine, v)
  local items = values.items(v)
  machine:spend(#items)
  return values.list(values.copy(items))
end)
def("items", function(machine, v)
  if values.is_undefined(v) then return values.generator {} end
  if not values.is_dict(v) then fault.raise("items needs a mapping, not " .. values.type(v)) end
  local list = methods.attribute(v, "items").call(machine, {}, {})
  return values.generator(values.copy(list))
end)
def("dictsort case_sensitive by reverse", function(machine, v, case_sensitive, by, reverse)
  if not values.is_dict(v) then fault.raise("dictsort needs a mapping, not " .. values.type(v)) end
  local list = methods.attribute(v, "items").call(machine, {}, {})
  local at = by == "value" and 2 or 1
  local function key(entry)
    local k = entry[at]
    return type(k) == "string" and not (case_sensitive and values.truth(case_sensitive)) and text.lower(k) or k
  end
  return sorted(machine, list, key, reverse)
end)

-- Sequences -----------------------------------------------------------------------------------------------------------------

-- The key that sort, unique, min and max compare: an attribute if asked for, letters' case ignored unless asked for.
local function key_by(machine, attribute, case_sensitive)
  local exact = case_sensitive ~= nil and values.truth(case_sensitive)
  return function(item)
    if given(attribute) then item = follow(machine, item, attribute) end
    return type(item) == "string" and not exact and text.lower(item) or item
  end
end

def("sort reverse case_sensitive attribute", function(machine, v, reverse, case_sensitive, attribute)
  return sorted(machine, values.items(v), key_by(machine, attribute, case_sensitive), reverse)
end)
def("unique case_sensitive attribute", function(machine, v, case_sensitive, attribute)
  local key, seen, kept = key_by(machine, attribute, case_sensitive), values.dict(), {}
  for _, item in ipairs(values.items(v)) do
    machine:spend(1)
    local k = key(item)
    if values.get(seen, k) == nil then
      values.put(seen, k, true)
      kept[#kept + 1] = item
    end
  end
  return values.generator(kept)
end)

local function extreme(name, better)
  def(name .. " case_sensitive attribute", function(machine, v, case_sensitive, attribute)
    local key, best = key_by(machine, attribute, case_sensitive), nil
    for _, item in ipairs(values.items(v)) do
      machine:spend(1)
      if best == nil or better(key(item), key(best)) then best = item end
    end
    if best == nil then return values.undefined("the " .. name .. " of nothing") end
    return best
  end)
end
extreme("min", function(a, b) return values.less(a, b) end)
extreme("max", function(a, b) return values.less(b, a) end)

def("first", function(_, v)
  local item = values.items(v)[1]
  if item == nil then return values.undefined "the first item of nothing" end
  return item
end)
def("last", function(_, v)
  local items = values.items(v)
  if #items == 0 then return values.undefined "the last item of nothing" end
  return items[#items]
end)
def("reverse", function(machine, v)
  local items, list = values.items(v), {}
  machine:spend(#items)
  for i = #items, 1, -1 do list[#list + 1] = items[i] end
  return type(v) == "string" and table.concat(list) or values.generator(list)
end)
def("join d attribute", function(machine, v, separator, attribute)
  separator = separator == nil and "" or values.string(separator)
  local parts, bytes = {}, 0
  for i, item in ipairs(values.items(v)) do
    if given(attribute) then item = follow(machine, item, attribute) end
    parts[i] = values.string(item)
    bytes = bytes + #parts[i] + #separator
  end
  machine:room(bytes)
  return table.concat(parts, separator)
end)
def("sum attribute start", function(machine, v, attribute, start)
  local total = start == nil and 0 or start
  for _, item in ipairs(values.items(v)) do
    machine:spend(1)
    if given(attribute) then item = follow(machine, item, attribute) end
    total = operators.arithmetic["+"](machine, total, item)
  end
  return total
end)
def("batch linecount fill_with", function(machine, v, count, fill)
  count = whole_of("batch", count)
  if count < 1 then fault.raise "batch needs a positive count" end
  local rows, row = {}, nil
  for _, item in ipairs(values.items(v)) do
    machine:spend(1)
    if row == nil or #row == count then
      row = values.list {}
      rows[#rows + 1] = row
    end
    row[#row + 1] = item
  end
  if row and given(fill) then
    machine:spend(count)
    while #row < count do row[#row + 1] = fill end
  end
  return values.generator(rows)
end)
def("groupby attribute default case_sensitive", function(machine, v, attribute, default, case_sensitive)
  local function of(item)
    local value = follow(machine, item, attribute)
    return values.is_undefined(value) and default or value
  end
  local exact = case_sensitive ~= nil and values.truth(case_sensitive)
  local function key(item)
    local value = of(item)
    return type(value) == "string" and not exact and text.lower(value) or value
  end
  local groups = {}
  for _, item in ipairs(sorted(machine, values.items(v), key)) do
    local group = groups[#groups]
    if not group or not values.equal(key(group[2][1]), key(item)) then
      group = values.tuple { of(item), values.list {} }
      groups[#groups + 1] = group
    end
    group[2][#group[2] + 1] = item
  end
  return values.list(groups)
end)

-- map(attribute='name', default=...) or map('filter', arguments...)
function filters.map(machine, v, args, kwargs)
  local list = {}
  for _, item in ipairs(values.items(v)) do
    machine:spend(1)
    if kwargs.attribute ~= nil then
      local value = follow(machine, item, kwargs.attribute)
      if values.is_undefined(value) and kwargs.default ~= nil then value = kwargs.default end
      list[#list + 1] = value
    else
      local rest = values.copy(args)
      local name = text_of("map", table.remove(rest, 1))
      list[#list + 1] = machine:filter(name, item, rest, kwargs)
    end
  end
  return values.generator(list)
end

-- select('test', ...), reject, selectattr('name', 'test', ...), rejectattr; without a test, truth decides.
local function selecting(by_attribute, wanted)
  return function(machine, v, args)
    local rest, kept = values.copy(args), {}
    local attribute
    if by_attribute then
      attribute = table.remove(rest, 1)
      if attribute == nil then fault.raise "selectattr and rejectattr need an attribute" end
    end
    local test = table.remove(rest, 1)
    for _, item in ipairs(values.items(v)) do
      machine:spend(1)
      local probed = by_attribute and follow(machine, item, attribute) or item
      local holds
      if test ~= nil then holds = machine:test(test, probed, rest) else holds = values.truth(probed) end
      if holds == wanted then kept[#kept + 1] = item end
    end
    return values.generator(kept)
  end
end
filters.select, filters.reject = selecting(false, true), selecting(false, false)
filters.selectattr, filters.rejectattr = selecting(true, true), selecting(true, false)

filters.d, filters.e, filters.count = filters.default, filters.escape, filters.length
filters.safe = filters.string

return filters
