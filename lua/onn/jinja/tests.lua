-- The tests behind `is`: name -> function(machine, value, argument) -> boolean.
local arguments = require "onn.jinja.arguments"
local operators = require "onn.jinja.operators"
local text = require "onn.jinja.text"
local values = require "onn.jinja.values"

local tests = {}

local function number_kind(v)
  local n, is_float = values.number(v)
  return n ~= nil and type(v) ~= "boolean", is_float
end

function tests.defined(_, v) return not values.is_undefined(v) end
function tests.undefined(_, v) return values.is_undefined(v) end
function tests.none(_, v) return values.is_none(v) end
function tests.string(_, v) return type(v) == "string" end
function tests.boolean(_, v) return type(v) == "boolean" end
tests["true"] = function(_, v) return v == true end
tests["false"] = function(_, v) return v == false end
function tests.number(_, v) return values.number(v) ~= nil end
function tests.integer(_, v)
  local is_number, is_float = number_kind(v)
  return is_number and not is_float
end
function tests.float(_, v)
  local is_number, is_float = number_kind(v)
  return is_number and is_float
end
function tests.mapping(_, v) return values.is_dict(v) end
function tests.sequence(_, v) return type(v) == "string" or values.is_sequence(v) or values.is_dict(v) or values.is_undefined(v) end
function tests.iterable(_, v) return tests.sequence(nil, v) or values.is_generator(v) end
function tests.callable(_, v) return values.is_callable(v) end
function tests.sameas(_, v, other) return rawequal(v, other) end
function tests.escaped() return false end
function tests.lower(machine, v)
  local s = machine:made(values.string(v))
  return text.lower(s) == s and text.upper(s) ~= s
end
function tests.upper(machine, v)
  local s = machine:made(values.string(v))
  return text.upper(s) == s and text.lower(s) ~= s
end
function tests.odd(_, v) return arguments.whole_of("odd", v) % 2 == 1 end
function tests.even(_, v) return arguments.whole_of("even", v) % 2 == 0 end
function tests.divisibleby(_, v, by) return arguments.whole_of("divisibleby", v) % arguments.whole_of("divisibleby", by) == 0 end

local function compare(op)
  return function(machine, a, b)
    if b == nil then b = values.undefined "the test's argument" end
    return operators.comparison[op](machine, a, b)
  end
end
for op, names in pairs { ["=="] = "eq equalto ==", ["!="] = "ne !=", ["<"] = "lt lessthan <", ["<="] = "le <=",
  [">"] = "gt greaterthan >", [">="] = "ge >=", ["in"] = "in" } do
  for name in names:gmatch "%S+" do tests[name] = compare(op) end
end

return tests
