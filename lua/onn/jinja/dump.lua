-- JSON text of a template's value, spaced as Python's json.dumps spaces it.
local fault = require "onn.jinja.fault"
local text = require "onn.jinja.text"
local values = require "onn.jinja.values"

local MAX_DEPTH = 64
local ESCAPES = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t", ["\b"] = "\\b", ["\f"] = "\\f" }

local function ascii(c)
  local code = text.code(c)
  if code < 0x10000 then return ("\\u%04x"):format(code) end
  code = code - 0x10000
  return ("\\u%04x\\u%04x"):format(0xD800 + math.floor(code / 1024), 0xDC00 + code % 1024)
end

local function quoted(s, options)
  s = s:gsub('[%z\1-\31"\\]', function(c) return ESCAPES[c] or ("\\u%04x"):format(c:byte()) end)
  if options.ensure_ascii then s = s:gsub("[\194-\244][\128-\191]+", ascii) end
  return '"' .. s .. '"'
end

local function scalar(v, options)
  if type(v) == "string" then return quoted(v, options) end
  if type(v) == "boolean" then return v and "true" or "false" end
  if values.is_none(v) then return "null" end
  if values.number(v) then return values.string(v) end
end

local function write(machine, v, options, depth, out)
  local plain = scalar(v, options)
  machine:spend(1 + depth + #(plain or "") / 16)
  if plain then
    out[#out + 1] = plain
    return
  end
  if depth > MAX_DEPTH then fault.raise("tojson: nested more than " .. MAX_DEPTH .. " deep", "memory") end
  local is_dict = values.is_dict(v)
  if not is_dict and not values.is_sequence(v) then
    values.defined(v)
    fault.raise("tojson cannot write a " .. values.type(v))
  end
  local keys = is_dict and v.keys or v
  if #keys == 0 then
    out[#out + 1] = is_dict and "{}" or "[]"
    return
  end
  if is_dict and options.sort_keys then
    keys = values.copy(keys)
    table.sort(keys, values.less)
  end
  local line = options.indent and "\n" .. options.indent:rep(depth + 1) or ""
  out[#out + 1] = is_dict and "{" or "["
  for i, key in ipairs(keys) do
    out[#out + 1] = (i > 1 and options.item or "") .. line
    if is_dict then
      out[#out + 1] = quoted(type(key) == "string" and key or scalar(key, options), options) .. options.colon
      write(machine, values.get(v, key), options, depth + 1, out)
    else
      write(machine, key, options, depth + 1, out)
    end
  end
  if options.indent then out[#out + 1] = "\n" .. options.indent:rep(depth) end
  out[#out + 1] = is_dict and "}" or "]"
end

local dump = {}

-- text(machine, v, options): options are indent (a text, or nil for one line), item and colon (the separators), ensure_ascii, sort_keys.
function dump.text(machine, v, options)
  local out = {}
  write(machine, v, options, 0, out)
  return table.concat(out)
end

return dump
