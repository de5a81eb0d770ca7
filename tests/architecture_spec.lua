-- The arrows of README's architecture section: recipes -> lua -> host -> kernels, never back, no cycles; file sizes; top level.
local lfs = require "lfs"
local support = require "tests.support"

local MOST_LINES = 600
local TOP = { kernels = true, host = true, lua = true, recipes = true, tests = true, Makefile = true, ["README.md"] = true,
  LICENSE = true, [".gitignore"] = true, [".luacheckrc"] = true, [".clang-tidy"] = true, [".clang-format"] = true,
  [".ci"] = true }

local function files(folder, pattern, found)
  found = found or {}
  for entry in lfs.dir(folder) do
    local path = folder .. "/" .. entry
    if entry:sub(1, 1) ~= "." and entry ~= "fixtures" and entry ~= "golden" then
      if lfs.attributes(path, "mode") == "directory" then
        files(path, pattern, found)
      elseif entry:find(pattern) then
        found[#found + 1] = path
      end
    end
  end
  table.sort(found)
  return found
end

local function exists(path) return lfs.attributes(path, "mode") == "file" end

local function code_of(path)
  local text = support.read(path)
  return (text:gsub("%-%-%[(=*)%[.-%]%1%]", ""):gsub("%-%-[^\n]*", ""))
end

-- Module names that a Lua file requires, in any of the usual spellings.
local function requires(path)
  local names = {}
  for _, pattern in ipairs { "require%s*%(?%s*\"([%w_%.%-]+)\"", "require%s*%(?%s*'([%w_%.%-]+)'" } do
    for name in code_of(path):gmatch(pattern) do
      if name:sub(-1) ~= "." then names[#names + 1] = name end -- a name put together at run time is not followed
    end
  end
  return names
end

local function module_file(name)
  local base = "lua/" .. name:gsub("%.", "/")
  return exists(base .. ".lua") and base .. ".lua" or exists(base .. "/init.lua") and base .. "/init.lua" or nil
end

describe("architecture", function()
  it("has the fixed top level", function()
    local status, out = support.shell "git ls-files --cached"
    if status ~= 0 or out == "" then return pending "no git checkout here" end
    for path in out:gmatch "[^\n]+" do
      local top = path:match "^[^/]+"
      assert.is_true(TOP[top] == true, top .. " is not part of the top level")
    end
  end)

  it("lets C files include what lies below them only", function()
    local wrong = {}
    for _, folder in ipairs { "kernels", "host" } do
      for _, path in ipairs(files(folder, "%.[chu]+$")) do
        local text = support.read(path):gsub("/%*.-%*/", "")
        for name in text:gmatch "#%s*include%s*\"([^\"]+)\"" do
          local here = path:match "^(.*)/" .. "/" .. name
          local known = name == "version.h" or exists("kernels/" .. name) or (exists(here) and not name:find("..", 1, true))
            or (folder == "host" and exists("host/" .. name))
          if not known then wrong[#wrong + 1] = path .. " includes " .. name end
        end
      end
    end
    assert.same({}, wrong)
  end)

  it("lets only host/main.c and host/bind* know Lua", function()
    local wrong = {}
    for _, folder in ipairs { "kernels", "host" } do
      for _, path in ipairs(files(folder, "%.[chu]+$")) do
        local text = support.read(path)
        local knows = text:find "#%s*include%s*[<\"]l[ua][ua][%w]*%.h" or text:find "#%s*include%s*[<\"]bind[%w_]*%.h"
        if knows and path ~= "host/main.c" and not path:find "^host/bind" then wrong[#wrong + 1] = path end
      end
    end
    assert.same({}, wrong)
  end)

  it("lets Lua modules require the library, the core and Debian's modules, but no recipe and no spec", function()
    local foreign = { argparse = true, lfs = true, ffi = true, bit = true, jit = true, ["table.new"] = true,
      ["table.clear"] = true, ["string.buffer"] = true }
    local wrong = {}
    for _, folder in ipairs { "lua", "recipes" } do
      for _, path in ipairs(files(folder, "%.lua$")) do
        for _, name in ipairs(requires(path)) do
          local fine = foreign[name] or name:find "^posix" or name:find "^onn%.core%.[%w_]+$" or module_file(name)
          if not fine then wrong[#wrong + 1] = path .. " requires " .. name end
        end
      end
    end
    assert.same({}, wrong)
  end)

  it("has no cycle of Lua modules", function()
    local state, cycle = {}, nil
    local function visit(path, trail)
      if state[path] == "done" or cycle then return end
      trail[#trail + 1] = path
      if state[path] == "open" then
        cycle = table.concat(trail, " -> ")
        return
      end
      state[path] = "open"
      for _, name in ipairs(requires(path)) do
        local file = module_file(name)
        if file and file ~= path then visit(file, trail) end -- its own name stands in the command line of a child
      end
      state[path] = "done"
      trail[#trail] = nil
    end
    for _, path in ipairs(files("lua", "%.lua$")) do visit(path, {}) end
    assert.is_nil(cycle)
  end)

  it("keeps files about one noun", function()
    local long = {}
    for _, folder in ipairs { "kernels", "host", "lua", "recipes", "tests" } do
      for _, path in ipairs(files(folder, "%.[chl][ua]*$")) do
        local _, lines = support.read(path):gsub("\n", "\n")
        if lines > MOST_LINES then long[#long + 1] = ("%s: %d lines"):format(path, lines) end
      end
    end
    assert.same({}, long)
  end)

  it("needs no package that the Makefile does not install", function()
    local text = support.read "Makefile"
    for _, name in ipairs { "lua%-argparse", "lua%-filesystem" } do assert.matches(name, text) end
  end)
end)
