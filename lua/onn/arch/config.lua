-- Values of a config.json, each with the kind it must have: what a model directory says is not to be trusted.
-- A kind is { check = function(v) -> boolean, text = "what is expected" }.
local config = {}

local function whole(v) return type(v) == "number" and v == math.floor(v) end

-- An integer from `low` to `high`.
function config.integer(low, high)
  return { check = function(v) return whole(v) and v >= low and v <= high end,
    text = low == 1 and ("a positive integer, at most %.0f"):format(high) or ("an integer from %.0f to %.0f"):format(low, high) }
end

config.positive = { check = function(v) return type(v) == "number" and v > 0 and v < math.huge end, text = "a number above zero" }
config.number = { check = function(v) return type(v) == "number" and math.abs(v) < math.huge end, text = "a number" }
config.flag = { check = function(v) return type(v) == "boolean" end, text = "true or false" }
config.text = { check = function(v) return type(v) == "string" end, text = "text" }
config.share = { check = function(v) return type(v) == "number" and v > 0 and v <= 1 end, text = "a number above 0, at most 1" }
config.object = { check = function(v) return type(v) == "table" and #v == 0 end, text = "an object" }
config.list = { check = function(v) return type(v) == "table" end, text = "a list" }
config.positives = {
  check = function(v)
    if type(v) ~= "table" then return false end
    for _, x in ipairs(v) do if not config.positive.check(x) then return false end end
    return true
  end,
  text = "a list of numbers above zero",
}

-- A value as messages show it: one line, not long.
function config.shown(v)
  if v == nil then return "nothing" end
  if type(v) == "table" then return #v > 0 and "a list" or "an object" end
  if type(v) == "string" then return "'" .. v:sub(1, 40):gsub("%c", "?") .. "'" end
  if type(v) == "number" then return ("%.17g"):format(v) end
  return tostring(v)
end

-- Is `v` of this kind? Appends to `wrong` what is not, and returns whether it is.
function config.check(name, v, kind, wrong)
  if kind.check(v) then return true end
  wrong[#wrong + 1] = ("'%s' should be %s, found %s"):format(name, kind.text, config.shown(v))
  return false
end

return config
