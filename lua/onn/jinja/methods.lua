-- What `value.name` and `value[key]` mean: methods of texts, lists and mappings (none that changes a value), and members.
local arguments = require "onn.jinja.arguments"
local fault = require "onn.jinja.fault"
local text = require "onn.jinja.text"
local values = require "onn.jinja.values"
local bind, text_of, whole_of = arguments.bind, arguments.text_of, arguments.whole_of

local strings, lists, dicts = {}, {}, {}

-- def(class, "name parameter ...", f): f(machine, self, parameters...)
local function def(class, signature, f)
  local words = {}
  for word in signature:gmatch "%S+" do words[#words + 1] = word end
  local name = table.remove(words, 1)
  class[name] = function(machine, self, args, kwargs)
    if type(self) == "string" then machine:search(self, args[1]) end
    return f(machine, self, bind(name, words, args, kwargs))
  end
end

local function optional(v) return v ~= values.none and v or nil end

-- Texts -------------------------------------------------------------------------------------------------------------------

def(strings, "strip chars", function(_, s, chars)
  return optional(chars) and text.strip_set(s, text_of("strip", chars), true, true) or text.strip(s)
end)
def(strings, "lstrip chars", function(_, s, chars)
  return optional(chars) and text.strip_set(s, text_of("lstrip", chars), true, false) or text.lstrip(s)
end)
def(strings, "rstrip chars", function(_, s, chars)
  return optional(chars) and text.strip_set(s, text_of("rstrip", chars), false, true) or text.rstrip(s)
end)
def(strings, "lower", function(_, s) return text.lower(s) end)
def(strings, "casefold", function(_, s) return text.lower(s) end)
def(strings, "upper", function(_, s) return text.upper(s) end)
def(strings, "title", function(_, s) return text.title(s) end)
def(strings, "capitalize", function(_, s) return text.capitalize(s) end)
def(strings, "swapcase", function(_, s)
  local list = text.chars(s)
  for i, c in ipairs(list) do
    local up = text.upper(c)
    list[i] = up ~= c and up or text.lower(c)
  end
  return table.concat(list)
end)

local function split_space(s, limit)
  local parts, i = {}, text.skip_space(s, 1)
  while i <= #s do
    if #parts == limit then
      parts[#parts + 1] = text.rstrip(s:sub(i))
      break
    end
    local j = i
    while j <= #s and text.skip_space(s, j) == j do j = j + 1 end
    parts[#parts + 1] = s:sub(i, j - 1)
    i = text.skip_space(s, j)
  end
  return parts
end

local function split_at(s, separator, limit)
  local parts, from = {}, 1
  while #parts < limit do
    local a, b = s:find(separator, from, true)
    if not a then break end
    parts[#parts + 1] = s:sub(from, a - 1)
    from = b + 1
  end
  parts[#parts + 1] = s:sub(from)
  return parts
end

local function separator_of(sep)
  text_of("split", sep)
  if sep == "" then fault.raise "split needs a separator that is not empty" end
  return sep
end

local function limit_of(n)
  n = whole_of("split", n, -1)
  return n < 0 and math.huge or n
end

def(strings, "split sep maxsplit", function(machine, s, sep, maxsplit)
  local limit = limit_of(maxsplit)
  local parts = optional(sep) and split_at(s, separator_of(sep), limit) or split_space(s, limit)
  machine:spend(#parts)
  return values.list(parts)
end)

def(strings, "rsplit sep maxsplit", function(machine, s, sep, maxsplit)
  local limit = limit_of(maxsplit)
  local backwards, parts
  if optional(sep) then
    backwards = split_at(s:reverse(), separator_of(sep):reverse(), limit)
    parts = {}
    for i = #backwards, 1, -1 do parts[#parts + 1] = backwards[i]:reverse() end
  else
    parts = split_space(s, math.huge)
    if #parts > limit + 1 then
      local head, tail = s, {}
      for i = limit, 1, -1 do
        head = text.rstrip(head)
        head = head:sub(1, #head - #parts[#parts])
        tail[i + 1] = table.remove(parts)
      end
      tail[1] = text.strip(head)
      parts = tail
    end
  end
  machine:spend(#parts)
  return values.list(parts)
end)

-- The bytes of the line break at offset i; 0 if there is none.
local function break_at(s, i)
  if s:find("^\r\n", i) or s:find("^\194\133", i) then return 2 end
  if s:find("^\226\128[\168\169]", i) then return 3 end
  return s:find("^[\n\r\v\f\28-\30]", i) and 1 or 0
end

def(strings, "splitlines keepends", function(machine, s, keepends)
  local parts, from, i = {}, 1, 1
  local keep = keepends ~= nil and values.truth(keepends)
  while true do
    i = s:find("[\n\r\v\f\28-\30\194\226]", i)
    if not i then break end
    local width = break_at(s, i)
    if width > 0 then
      parts[#parts + 1] = s:sub(from, keep and i + width - 1 or i - 1)
      from = i + width
    end
    i = i + math.max(width, 1)
  end
  if from <= #s then parts[#parts + 1] = s:sub(from) end
  machine:spend(#parts + #s / 16)
  return values.list(parts)
end)

def(strings, "partition sep", function(_, s, sep)
  local a, b = s:find(separator_of(sep), 1, true)
  if not a then return values.tuple { s, "", "" } end
  return values.tuple { s:sub(1, a - 1), sep, s:sub(b + 1) }
end)
def(strings, "rpartition sep", function(_, s, sep)
  local a = text.find_last(s, separator_of(sep))
  if not a then return values.tuple { "", "", s } end
  return values.tuple { s:sub(1, a - 1), sep, s:sub(a + #sep) }
end)

local function any_of(what, v, matches)
  for _, one in ipairs(values.is_tuple(v) and v or { v }) do
    if matches(text_of(what, one)) then return true end
  end
  return false
end

def(strings, "startswith prefix", function(_, s, prefix)
  return any_of("startswith", prefix, function(p) return s:sub(1, #p) == p end)
end)
def(strings, "endswith suffix", function(_, s, suffix)
  return any_of("endswith", suffix, function(p) return p == "" or (#p <= #s and s:sub(-#p) == p) end)
end)
def(strings, "removeprefix prefix", function(_, s, p)
  return s:sub(1, #text_of("removeprefix", p)) == p and s:sub(#p + 1) or s
end)
def(strings, "removesuffix suffix", function(_, s, p)
  return #text_of("removesuffix", p) > 0 and s:sub(-#p) == p and s:sub(1, -#p - 1) or s
end)

def(strings, "replace old new count", function(machine, s, old, new, count)
  text_of("replace", old)
  text_of("replace", new)
  count = limit_of(count)
  machine:room(#s + math.min(count, text.occurrences(s, old)) * #new)
  return text.replace(s, old, new, count)
end)

local function found(s, at) return at and text.offset_to_index(s, at) or -1 end

def(strings, "find part", function(_, s, part) return found(s, s:find(text_of("find", part), 1, true)) end)
def(strings, "rfind part", function(_, s, part) return found(s, text.find_last(s, text_of("rfind", part))) end)
def(strings, "index part", function(_, s, part)
  return found(s, s:find(text_of("index", part), 1, true) or fault.raise "index: the part does not occur")
end)
def(strings, "rindex part", function(_, s, part)
  return found(s, text.find_last(s, text_of("rindex", part)) or fault.raise "rindex: the part does not occur")
end)
def(strings, "count part", function(_, s, part) return text.occurrences(s, text_of("count", part)) end)

def(strings, "join items", function(machine, s, items)
  local parts, bytes = {}, 0
  for i, item in ipairs(values.items(items)) do
    parts[i] = text_of("join", item)
    bytes = bytes + #item + #s
  end
  machine:room(bytes)
  return table.concat(parts, s)
end)

local function padded(machine, s, width, side)
  local missing = whole_of(side, width) - text.length(s)
  if missing <= 0 then return s end
  machine:room(missing + #s)
  local left = side == "rjust" and missing or 0
  if side == "center" then left = math.floor(missing / 2) + (missing % 2) * (whole_of(side, width) % 2) end
  return (" "):rep(left) .. s .. (" "):rep(missing - left)
end
for _, side in ipairs { "center", "ljust", "rjust" } do
  def(strings, side .. " width", function(machine, s, width) return padded(machine, s, width, side) end)
end
def(strings, "zfill width", function(machine, s, width)
  local missing = whole_of("zfill", width) - text.length(s)
  if missing <= 0 then return s end
  machine:room(missing + #s)
  local sign, rest = s:match "^([-+]?)(.*)$"
  return sign .. ("0"):rep(missing) .. rest
end)

-- Every character of a text that is not empty fulfils `holds`.
local function every(name, holds)
  def(strings, name, function(_, s)
    for _, c in ipairs(text.chars(s)) do
      if not holds(c) then return false end
    end
    return s ~= ""
  end)
end
local function is_digit(c) return c:find "^%d$" ~= nil end
every("isspace", text.is_space)
every("isdigit", is_digit)
every("isdecimal", is_digit)
every("isnumeric", is_digit)
every("isalpha", text.is_letter)
every("isalnum", function(c) return is_digit(c) or text.is_letter(c) end)
every("isascii", function(c) return #c == 1 end)
def(strings, "isupper", function(_, s) return text.upper(s) == s and text.lower(s) ~= s end)
def(strings, "islower", function(_, s) return text.lower(s) == s and text.upper(s) ~= s end)

-- '{} {0} {name}'.format(...): plain fields, no attributes and no format after a colon.
function strings.format(machine, s, args, kwargs)
  local next_field = 0
  local made = s:gsub("{({?)([^{}]*)}(}?)", function(open, field, close)
    if open ~= "" and close ~= "" then return "{" .. field .. "}" end
    local v
    if field == "" then
      next_field = next_field + 1
      v = args[next_field]
    elseif field:find "^%d+$" then
      v = args[tonumber(field) + 1]
    else
      v = kwargs[field]
    end
    if v == nil then fault.raise("format has no value for '{" .. field .. "}'") end
    v = values.string(v)
    machine:room(#v)
    return open .. v .. close
  end)
  return machine:made(made)
end

-- Lists and mappings --------------------------------------------------------------------------------------------------------

def(lists, "index item", function(machine, list, item)
  machine:spend(#list)
  for i, other in ipairs(list) do
    if values.equal(item, other) then return i - 1 end
  end
  fault.raise "index: the item is not in the list"
end)
def(lists, "count item", function(machine, list, item)
  machine:spend(#list)
  local n = 0
  for _, other in ipairs(list) do
    if values.equal(item, other) then n = n + 1 end
  end
  return n
end)
def(lists, "copy", function(machine, list)
  machine:spend(#list)
  return values.list(values.copy(list))
end)

def(dicts, "keys", function(machine, d)
  machine:spend(#d.keys)
  return values.list(values.copy(d.keys))
end)
def(dicts, "values", function(machine, d)
  machine:spend(#d.keys)
  local items = {}
  for i, key in ipairs(d.keys) do items[i] = values.get(d, key) end
  return values.list(items)
end)
def(dicts, "items", function(machine, d)
  machine:spend(2 * #d.keys)
  local items = {}
  for i, key in ipairs(d.keys) do items[i] = values.tuple { key, values.get(d, key) } end
  return values.list(items)
end)
def(dicts, "get key default", function(_, d, key, default)
  local value = values.get(d, key)
  if value ~= nil then return value end
  if default ~= nil then return default end
  return values.none
end)
def(dicts, "copy", function(machine, d)
  machine:spend(#d.keys)
  local copy = values.dict()
  for _, key in ipairs(d.keys) do values.put(copy, key, values.get(d, key)) end
  return copy
end)

-- Methods that would change a value a template was given.
local function refuse(class, kind, names)
  for name in names:gmatch "%S+" do
    class[name] = function() fault.raise(("a template may not change a %s with %s()"):format(kind, name), "unsupported") end
  end
end
refuse(lists, "list", "append clear extend insert pop remove reverse sort")
refuse(dicts, "mapping", "clear pop popitem setdefault update")

local function class_of(v)
  if type(v) == "string" then return strings end
  if values.is_sequence(v) then return lists end
  if values.is_dict(v) then return dicts end
end

local function method(v, name)
  local class = class_of(v)
  local f = class and class[name]
  if f then return values.callable(name, function(machine, args, kwargs) return f(machine, v, args, kwargs) end) end
end

local methods = {}

local function absent(v, key) return values.undefined(("'%s' of a %s"):format(values.string(key), values.type(v))) end

-- attribute(v, name): v.name; a method comes before a key of the same name.
function methods.attribute(v, name)
  values.defined(v)
  local found_method = method(v, name)
  if found_method then return found_method end
  local value
  if values.is_dict(v) or values.is_namespace(v) then
    value = values.get(v, name)
  elseif values.is_callable(v) and v.members then
    value = v.members(name)
  end
  if value == nil then return absent(v, name) end
  return value
end

-- item(machine, v, key): v[key]; a key comes before a method of the same name.
function methods.item(machine, v, key)
  values.defined(v)
  local value
  if values.is_dict(v) then
    value = values.get(v, key)
  elseif type(v) == "string" or values.is_sequence(v) then
    local i, is_float = values.number(key)
    if i and not is_float then
      if type(v) == "string" then machine:spend(#v / 16) end
      local items = type(v) == "string" and text.chars(v) or v
      value = items[i < 0 and #items + i + 1 or i + 1]
    end
  end
  if value ~= nil then return value end
  if type(key) == "string" then
    if values.is_namespace(v) or values.is_callable(v) then return methods.attribute(v, key) end
    return method(v, key) or absent(v, key)
  end
  values.defined(key)
  return absent(v, key)
end

return methods
