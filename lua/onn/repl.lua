-- The interactive prompt: expressions print their values, unfinished input goes on, errors leave the prompt standing.
local program = require "onn.core.program"
local signals = require "onn.core.signals"
local terminal = require "onn.core.terminal"

local repl = {}

-- compile(text) -> function | nil, message, unfinished
function repl.compile(text)
  local code = text:gsub("^%s*=", "return ", 1)
  local chunk = load("return " .. code, "=stdin", "t")
  if chunk then return chunk end
  local message
  chunk, message = load(code, "=stdin", "t")
  return chunk, message, not chunk and message:find "'<eof>'$" ~= nil
end

local function names_of(value)
  local names = {}
  for _ = 1, 8 do -- a chain of __index tables, bounded
    if type(value) == "table" then
      for name in pairs(value) do
        if type(name) == "string" then names[name] = true end
      end
    end
    local meta = getmetatable(value)
    local list = type(meta) == "table" and rawget(meta, "__names")
    for _, name in ipairs(list and list(value) or {}) do names[name] = true end
    value = type(meta) == "table" and rawget(meta, "__index")
    if type(value) ~= "table" then break end
  end
  return names
end

local keywords = {}
for word in ([[and break do else elseif end false for function if in local nil not or repeat return then true until
  while]]):gmatch "%a+" do keywords[word] = true end

-- candidates(line up to the cursor) -> the started word, sorted names that continue it
function repl.candidates(before)
  local path, word = before:match "([%a_][%w_%.:]*[%.:])([%w_]*)$"
  local value, names = _G
  if path then
    for part in path:gmatch "[%w_]+" do
      local ok, inner = pcall(function() return value[part] end)
      if not ok or inner == nil then return word, {} end
      value = inner
    end
    names = names_of(value)
  else
    word = before:match "[%a_][%w_]*$" or ""
    names = names_of(_G)
    for name in pairs(keywords) do names[name] = true end
  end
  local found = {}
  for name in pairs(names) do
    if name:sub(1, #word) == word and name:find "^[%a_][%w_]*$" then found[#found + 1] = name end
  end
  table.sort(found)
  return word, found
end

-- What Tab inserts and shows: the part that all candidates share, and the candidates if it ends there.
function repl.complete(before)
  local word, found = repl.candidates(before)
  if #found == 0 then return nil end
  local shared = found[1]
  for _, name in ipairs(found) do
    while name:sub(1, #shared) ~= shared do shared = shared:sub(1, -2) end
  end
  local insert = shared:sub(#word + 1)
  if insert ~= "" or #found == 1 then return insert end
  return nil, table.concat(found, "  ")
end

local function show(ok, ...)
  if not ok then
    local problem = ...
    io.stderr:write(tostring(problem), "\n")
  elseif select("#", ...) > 0 then
    print(...)
  end
end

local function traceback(problem)
  if type(problem) == "table" and problem.user then return tostring(problem) end
  local text = type(problem) == "string" and problem or tostring(problem)
  if signals.pending() then return "interrupted" end
  return (debug.traceback(text, 2):gsub("\n%s*%[C%]: in function 'xpcall'.*", ""))
end

local function run()
  local buffer = ""
  while true do
    local line = terminal.read(buffer == "" and "> " or ">> ")
    if line == nil then return end
    if line == false then
      buffer = ""
    else
      buffer = buffer == "" and line or buffer .. "\n" .. line
      local chunk, message, unfinished = repl.compile(buffer)
      if not unfinished then
        if buffer:find "%S" then terminal.remember(buffer) end
        buffer = ""
        if chunk then
          jit.off(chunk, true) -- compiled loops do not see Ctrl-C
          show(xpcall(chunk, traceback))
        else
          io.stderr:write(message, "\n")
        end
        signals.clear()
        io.stdout:flush()
      end
    end
  end
end

function repl.start()
  local home = os.getenv "HOME"
  if home then terminal.history(home .. "/.onn_history") end
  local ok, onn = pcall(require, "onn")
  if ok and rawget(_G, "onn") == nil then rawset(_G, "onn", onn) end
  terminal.complete(repl.complete)
  if terminal.isatty(0) then
    print(("onn %s, %s. Ctrl-D ends."):format(program.version, jit.version))
  end
  run()
  terminal.close()
end

return repl
