-- A trace of a run for chrome://tracing and ui.perfetto.dev: spans with a name, a category, a beginning and a length.
--   trace.start "trace.json"; local began = trace.now(); ...; trace.span("model.layers.0", "forward", began)
-- The file is written when the program ends. Nothing is kept while no trace is on.
local json = require "onn.core.json"
local system = require "onn.core.system"

local trace = { on = false }

local events, origin, path, guard

function trace.now() return trace.on and system.now() or nil end

-- A span from `began` (what now() gave) to `ended` (default: now). details: a table of plain values shown beside it, or nil; thread: of
-- the row it is shown in (1: the arithmetic; 2: the reader).
function trace.span(name, category, began, details, ended, thread)
  if not began then return end
  local now = ended or system.now()
  events[#events + 1] = { name = name, cat = category, ph = "X", ts = math.floor((began - origin) * 1e6 + 0.5),
    dur = math.floor((now - began) * 1e6 + 0.5), pid = 1, tid = thread or 1, args = details }
end

-- Writes the file. Returns true, or nil, message, code.
function trace.finish()
  if not trace.on then return true end
  trace.on = false
  local rows = {}
  for i, event in ipairs(events) do rows[i] = json.encode(event) end
  return system.write_file(path, '{"displayTimeUnit":"ms","traceEvents":[\n' .. table.concat(rows, ",\n") .. "\n]}\n")
end

-- Begins a trace that goes to `file`. Returns true, or nil, message, code where it cannot be written.
function trace.start(file)
  local ok, message, code = system.write_file(file, '{"traceEvents":[]}\n')
  if not ok then return nil, message, code end
  events, origin, path, trace.on = {}, system.now(), file, true
  local function name(what, thread, text) events[#events + 1] = { name = what, ph = "M", pid = 1, tid = thread, args = { name = text } } end
  name("process_name", 1, "onn")
  name("thread_name", 1, "arithmetic")
  name("thread_name", 2, "reader")
  if not guard then -- runs when the Lua state closes, however the program ends
    guard = newproxy(true)
    getmetatable(guard).__gc = function()
      local written, wrong = trace.finish()
      if not written then io.stderr:write("onn: --profile: ", wrong, "\n") end
    end
  end
  return true
end

return trace
