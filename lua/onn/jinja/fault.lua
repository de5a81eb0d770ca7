-- A template's error as a Lua error value: message, code (a status name) and the line where it happened.
local fault = {}

local Fault = {}
Fault.__index = Fault
Fault.__tostring = function(self) return self.message end

-- raise(message, code, line): code defaults to "format"; without a line the evaluator adds the one it is at.
function fault.raise(message, code, line)
  error(setmetatable({ message = message, code = code or "format", line = line }, Fault), 0)
end

function fault.is(value) return getmetatable(value) == Fault end

-- describe(value, name, line): what a caught error becomes for the caller: message, code.
function fault.describe(value, name, line)
  if not fault.is(value) then
    local message = tostring(value)
    if message:find("stack overflow", 1, true) then
      value = { message = "nested too deeply", code = "memory" }
    elseif message:find("not enough memory", 1, true) then
      value = { message = message, code = "memory" }
    else
      error(value, 0)
    end
  end
  return ("%s: line %d: %s"):format(name, value.line or line or 1, value.message), value.code
end

return fault
