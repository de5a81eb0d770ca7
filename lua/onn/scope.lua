-- onn.scope(f, ...): runs f and frees every tensor made inside, except those it returns (also inside returned tables) or
-- gave to onn.keep. An error frees them all and goes on.
local core = require "onn.core.tensor"
local traced = require "onn.traced"

local function finish(ok, ...)
  if ok then
    core.scope_end(...)
    return ...
  end
  core.scope_end()
  error((...), 0)
end

return function(f, ...)
  core.scope_begin()
  local n, arguments = select("#", ...), { ... }
  return finish(xpcall(function() return f(unpack(arguments, 1, n)) end, traced))
end
