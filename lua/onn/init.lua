-- onn: the library's front door. `onn.NAME` loads lua/onn/NAME.lua at its first use.
local program = require "onn.core.program"

local onn = { version = program.version, revision = program.revision, home = program.home }

local core = require "onn.core.tensor"
onn.keep = core.keep -- tensors given to it outlive the scope they were made in
-- Bytes of device memory: {used, cached, peak, budget}.
onn.memory = core.memory

local function names()
  local found = {}
  local ok, lfs = pcall(require, "lfs")
  if ok and program.home then
    for file in lfs.dir(program.home .. "/lua/onn") do
      local name = file:match "^([%w_]+)%.lua$" or file:match "^([%w_]+)$"
      if name and name ~= "init" then found[#found + 1] = name end
    end
  end
  return found
end

return setmetatable(onn, {
  __names = names, -- for completion
  __index = function(self, name)
    if type(name) ~= "string" or not package.searchpath("onn." .. name, package.path) then return nil end
    local module = require("onn." .. name)
    rawset(self, name, module)
    return module
  end,
})
