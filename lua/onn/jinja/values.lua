-- The values a template handles. Strings, booleans and whole numbers are Lua's own; a float with a whole value is boxed, so
-- that 2.0 prints as Python prints it. None and undefined are objects: no value is ever nil.
local fault = require "onn.jinja.fault"
local json = require "onn.core.json"
local text = require "onn.jinja.text"

local values = {}

local None, Undefined, Float, List, Tuple, Generator, Dict, Namespace, Callable =
  { type = "none" }, { type = "undefined" }, { type = "float" }, { type = "list" }, { type = "tuple" }, { type = "generator" },
  { type = "mapping" }, { type = "namespace" }, { type = "function" }
values.none = setmetatable({}, None)

function values.undefined(what) return setmetatable({ what = what }, Undefined) end
function values.list(items) return setmetatable(items or {}, List) end
function values.tuple(items) return setmetatable(items or {}, Tuple) end
-- A generator is always true, has no length, and gives its items once.
function values.generator(items) return setmetatable(items, Generator) end
function values.callable(name, call) return setmetatable({ name = name, call = call }, Callable) end

-- One rendering runs at a time; whatever walks a value is charged to its machine, because lists that share parts can be far
-- larger to walk than to hold.
local machine

-- charge_to(m): from here on m:spend() counts the walks; nil ends it.
function values.charge_to(m) machine = m end

local function charge(n)
  if machine then machine:spend(n) end
end

-- copy(items): a new array of the same items.
function values.copy(items)
  local copy = {}
  for i, item in ipairs(items) do copy[i] = item end
  return copy
end

local MAX_INTEGER = 2 ^ 53

-- integer(x): a result of whole number arithmetic; refuses what a double cannot hold exactly.
function values.integer(x)
  if x >= MAX_INTEGER or x <= -MAX_INTEGER then fault.raise("a whole number is beyond 2^53", "argument") end
  return x
end

function values.float(x)
  if x ~= x or x == math.huge or x == -math.huge then fault.raise("a number is not finite", "argument") end
  if x % 1 == 0 then return setmetatable({ value = x }, Float) end
  return x
end

-- type(v): "string", "integer", "float", "boolean", "none", "undefined", "list", "tuple", "generator", "mapping",
-- "namespace", "function".
function values.type(v)
  local kind = type(v)
  if kind == "table" then return getmetatable(v).type end
  if kind == "number" then return v % 1 == 0 and "integer" or "float" end
  return kind
end
local type_of = values.type

-- number(v): v as a Lua number, and whether it is a float; nil if it is no number. Booleans count as 1 and 0.
function values.number(v)
  local kind = type(v)
  if kind == "number" then return v, v % 1 ~= 0 end
  if kind == "boolean" then return v and 1 or 0, false end
  if kind == "table" and getmetatable(v) == Float then return v.value, true end
end
local number = values.number

function values.is_none(v) return v == values.none end
function values.is_undefined(v) return getmetatable(v) == Undefined end
local STRING_META = getmetatable ""
local function meta(v)
  local m = getmetatable(v)
  return m ~= STRING_META and m or nil
end
function values.is_sequence(v) local m = meta(v) return m == List or m == Tuple end
function values.is_list(v) return meta(v) == List end
function values.is_tuple(v) return meta(v) == Tuple end
function values.is_generator(v) return meta(v) == Generator end
function values.is_dict(v) return meta(v) == Dict end
function values.is_namespace(v) return meta(v) == Namespace end
function values.is_callable(v) return meta(v) == Callable end

-- defined(v): v, or a fault that says what is undefined.
function values.defined(v)
  if getmetatable(v) == Undefined then fault.raise(v.what .. " is undefined", "format") end
  return v
end

-- Dictionaries keep the order in which keys came --------------------------------------------------------------------

function values.dict() return setmetatable({ keys = {}, map = {} }, Dict) end
function values.namespace() return setmetatable({ keys = {}, map = {} }, Namespace) end

local function key_of(key)
  local n = number(key)
  if n then return n end
  if type(key) == "string" or key == values.none then return key end
  fault.raise("a " .. type_of(key) .. " cannot be a key", "format")
end

function values.put(dict, key, value)
  local k = key_of(key)
  if dict.map[k] == nil then dict.keys[#dict.keys + 1] = key end
  dict.map[k] = value
end

-- get(dict, key): the value, or nil.
function values.get(dict, key)
  local n = number(key)
  return dict.map[n == nil and key or n]
end

-- Truth, equality, order ----------------------------------------------------------------------------------------------

function values.truth(v)
  if type(v) == "boolean" then return v end
  if type(v) == "string" then return v ~= "" end
  local n = number(v)
  if n then return n ~= 0 end
  local m = getmetatable(v)
  if m == None or m == Undefined then return false end
  if m == List or m == Tuple then return #v > 0 end
  if m == Dict then return #v.keys > 0 end
  return true
end

function values.equal(a, b)
  if rawequal(a, b) then return true end
  local x, y = number(a), number(b)
  if x and y then return x == y end
  local m = meta(a)
  if m == nil or m ~= meta(b) then return false end
  if m == Undefined then return true end
  charge(1)
  if m == List or m == Tuple then
    if #a ~= #b then return false end
    for i = 1, #a do
      if not values.equal(a[i], b[i]) then return false end
    end
    return true
  end
  if m == Dict then
    if #a.keys ~= #b.keys then return false end
    for _, key in ipairs(a.keys) do
      local other = values.get(b, key)
      if other == nil or not values.equal(values.get(a, key), other) then return false end
    end
    return true
  end
  return false
end

function values.less(a, b)
  values.defined(a)
  values.defined(b)
  local x, y = number(a), number(b)
  if x and y then return x < y end
  if type(a) == "string" and type(b) == "string" then return a < b end
  if values.is_sequence(a) and meta(a) == meta(b) then
    for i = 1, math.min(#a, #b) do
      charge(1)
      if not values.equal(a[i], b[i]) then return values.less(a[i], b[i]) end
    end
    return #a < #b
  end
  fault.raise(("cannot order %s and %s"):format(type_of(a), type_of(b)), "format")
end

-- Iteration and length --------------------------------------------------------------------------------------------------

-- items(v): an array of what a loop over v sees.
function values.items(v)
  if type(v) == "string" then return text.chars(v) end
  local m = getmetatable(v)
  if m == List or m == Tuple then return v end
  if m == Dict then return v.keys end
  if m == Undefined then return {} end
  if m == Generator then
    if v.used then return {} end
    v.used = true
    return v
  end
  fault.raise("cannot loop over " .. type_of(v), "format")
end

function values.length(v)
  if type(v) == "string" then return text.length(v) end
  local m = getmetatable(v)
  if m == List or m == Tuple then return #v end
  if m == Dict then return #v.keys end
  if m == Undefined then return 0 end
  fault.raise(type_of(v) .. " has no length", "format")
end

-- Text ------------------------------------------------------------------------------------------------------------------

local function float_text(x)
  if x % 1 == 0 and math.abs(x) < 1e16 then return ("%.1f"):format(x) end
  local s
  for digits = 15, 17 do
    s = ("%." .. digits .. "g"):format(x)
    if tonumber(s) == x then break end
  end
  if not s:find("[%.e]") then s = ("%.16e"):format(x) end
  return s
end

local QUOTED = { ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t", ["\\"] = "\\\\" }

local function string_repr(s)
  local quote = (s:find("'", 1, true) and not s:find('"', 1, true)) and '"' or "'"
  s = s:gsub("[%z\1-\31\127\\]", function(c) return QUOTED[c] or ("\\x%02x"):format(c:byte()) end)
  s = s:gsub("\194([\128-\160\173])", function(c) return ("\\x%02x"):format(c:byte()) end)
  if quote == "'" then s = s:gsub("'", "\\'") end
  return quote .. s .. quote
end

local repr

local function joined(items, open, close, render)
  local parts = {}
  for i, item in ipairs(items) do
    parts[i] = render(item)
    charge(1 + #parts[i] / 16)
  end
  return open .. table.concat(parts, ", ") .. close
end

function values.string(v)
  if type(v) == "string" then return v end
  local n, is_float = number(v)
  if type(v) == "boolean" then return v and "True" or "False" end
  if n then return is_float and float_text(n) or ("%d"):format(n) end
  if getmetatable(v) == Undefined then return "" end
  return repr(v)
end

function repr(v)
  if type(v) == "string" then return string_repr(v) end
  local m = getmetatable(v)
  if m == None then return "None" end
  if m == Undefined then return "Undefined" end
  if m == List then return joined(v, "[", "]", repr) end
  if m == Tuple then return joined(v, "(", #v == 1 and ",)" or ")", repr) end
  if m == Dict or m == Namespace then
    local body = joined(v.keys, "{", "}", function(key) return repr(key) .. ": " .. repr(values.get(v, key)) end)
    return m == Dict and body or "<Namespace " .. body .. ">"
  end
  if m == Callable then return "<" .. v.name .. ">" end
  if m == Generator then return "<generator>" end
  return values.string(v)
end
values.repr = repr

-- float_text is also what tojson writes.
values.float_text = float_text

-- From Lua --------------------------------------------------------------------------------------------------------------

local ARRAY = getmetatable(json.array {})
local MAX_DEPTH = 64

local function is_array(t) return #t > 0 or getmetatable(t) == ARRAY end

-- wrap(v): a Lua value as a template's value. Tables that are json.array, or have a first element, become lists; others
-- dictionaries. Their keys come in the order of `json.keys` where the reader kept it, else sorted.
function values.wrap(v, depth)
  depth = depth or 0
  local kind = type(v)
  if v == nil or v == json.null then return values.none end
  if kind == "string" or kind == "boolean" then return v end
  if kind == "number" then
    if v ~= v or v == math.huge or v == -math.huge then fault.raise("a number is not finite", "argument") end
    return v
  end
  if kind ~= "table" then fault.raise("a template cannot use a " .. kind, "argument") end
  local m = getmetatable(v)
  if m and m.type and (m == Dict or m == List or m == Tuple) then return v end
  if depth >= MAX_DEPTH then fault.raise("values are nested more than " .. MAX_DEPTH .. " deep", "argument") end
  if is_array(v) then
    local items = {}
    for i = 1, #v do items[i] = values.wrap(v[i], depth + 1) end
    return values.list(items)
  end
  local dict, keys = values.dict(), {}
  for key in pairs(v) do
    if type(key) ~= "string" then fault.raise("a table mixes names and positions", "argument") end
    keys[#keys + 1] = key
  end
  table.sort(keys)
  for _, key in ipairs(keys) do values.put(dict, key, values.wrap(v[key], depth + 1)) end
  return dict
end

-- object{ {key, value}, ... }: a dictionary whose keys keep this order, to be passed in a template's variables.
function values.object(pairs_in_order)
  local dict = values.dict()
  for _, entry in ipairs(pairs_in_order) do values.put(dict, entry[1], values.wrap(entry[2])) end
  return dict
end

return values
