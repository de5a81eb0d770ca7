-- The kinds of values that options take: each turns the user's text into a value, or gives nil and what was expected.
local units = require "onn.units"

local types = {}

local function quoted(text) return "'" .. text .. "'" end

local function expected(what, text) return nil, ("expected %s, got '%s'"):format(what, text) end

local function in_range(value, spec, text, what)
  if (spec.min and value < spec.min) or (spec.max and value > spec.max) then
    local range = spec.min and spec.max and (" from %s to %s"):format(spec.min, spec.max)
      or spec.min and (" of at least %s"):format(spec.min) or (" of at most %s"):format(spec.max)
    return expected(what .. range, text)
  end
  return value
end

function types.string(text) return text end

function types.number(text, spec)
  local value = text:find "^%s*[-+]?[%d%.]" and tonumber(text)
  if not value or text:find "[xX]" or math.abs(value) == math.huge then return expected("a number", text) end
  return in_range(value, spec, text, "a number")
end

function types.integer(text, spec)
  local value = text:find "^%s*[-+]?%d+%s*$" and tonumber(text)
  if not value or math.abs(value) >= 2 ^ 53 then return expected("an integer", text) end
  return in_range(value, spec, text, "an integer")
end

-- A share may carry a percent sign: 80% is 0.8.
function types.share(text, spec)
  local number = text:match "^(.-)%s*%%$"
  local value = types.number(number or text, {})
  if not value then return expected("a share such as 0.8 or 80%", text) end
  if number then value = value / 100 end
  return in_range(value, { min = spec.min or 0, max = spec.max or 1 }, text, "a share")
end

function types.bytes(text, spec)
  local value, message = units.parse_bytes(text)
  if not value then return nil, message end
  if value == 0 and not spec.min then return expected("a size above zero", text) end
  return in_range(value, spec, text, "a size in bytes")
end

function types.duration(text, spec)
  local value, message = units.parse_duration(text)
  if not value then return nil, message end
  return in_range(value, spec, text, "a time in seconds")
end

function types.device(text)
  if text == "auto" or text == "cpu" or text == "cuda" or text:find "^cuda:%d+$" then return text end
  return expected("cpu, cuda, cuda:N or auto", text)
end

-- "1,8,64" with of = "integer" -> { 1, 8, 64 }
function types.list(text, spec)
  local list = {}
  for item in (text .. ","):gmatch "%s*([^,]*),%s*" do
    if item == "" then return expected("a list such as a,b,c", text) end
    local value, message = types[spec.of or "string"](item, spec)
    if value == nil then return nil, message end
    list[#list + 1] = value
  end
  return list
end

-- KEY=VALUE, given as often as wanted: a table.
function types.pair(text)
  local key, value = text:match "^([^=%s]+)=(.*)$"
  if not key then return expected("KEY=VALUE", text) end
  return { key, value }
end

-- convert(spec, text) -> value | nil, message
function types.convert(spec, text)
  local convert = types[spec.type]
  if spec.choices then
    local function known(item)
      for _, choice in ipairs(spec.choices) do
        if choice == item then return true end
      end
    end
    local value, message = convert(text, spec)
    if value == nil then return nil, message end
    for _, item in ipairs(type(value) == "table" and value or { value }) do
      if not known(item) then
        local list = {}
        for i, choice in ipairs(spec.choices) do list[i] = quoted(tostring(choice)) end
        return expected("one of " .. table.concat(list, ", "), tostring(item))
      end
    end
    return value
  end
  return convert(text, spec)
end

return types
