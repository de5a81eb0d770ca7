-- What specs share: running commands, scratch folders, files.
local support = {}

local function quote(text) return "'" .. tostring(text):gsub("'", "'\\''") .. "'" end
support.quote = quote

-- The onn under test: the one that runs the specs.
support.onn = os.getenv "ONN" or "build/onn"

function support.read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end

function support.write(path, text)
  local file = assert(io.open(path, "wb"))
  assert(file:write(text))
  assert(file:close())
  return path
end

-- scratch() -> path of a new folder; scratch_remove() in teardown takes all of them away.
local folders = {}
function support.scratch()
  local path = os.tmpname()
  os.remove(path)
  assert(os.execute("mkdir " .. quote(path)) == 0)
  folders[#folders + 1] = path
  return path
end

function support.scratch_remove()
  for _, path in ipairs(folders) do os.execute("rm -rf " .. quote(path)) end
  folders = {}
end

-- merged(a, b, ...) -> a table with the keys of all, later ones over earlier.
function support.merged(...)
  local whole = {}
  for _, part in ipairs { ... } do for k, v in pairs(part) do whole[k] = v end end
  return whole
end

-- shell(command, input) -> exit status, stdout, stderr
function support.shell(command, input)
  local base = os.tmpname()
  local function part(name) return base .. "." .. name end
  support.write(part "in", input or "")
  local pipe = io.popen(("( %s ) <%s >%s 2>%s; echo $?"):format(command, part "in", part "out", part "err"))
  local status = tonumber(pipe:read "*a")
  pipe:close()
  local out, err = support.read(part "out"), support.read(part "err")
  for _, name in ipairs { "in", "out", "err" } do os.remove(part(name)) end
  os.remove(base)
  return status, out, err
end

-- run({ words }, input) -> exit status, stdout, stderr of onn with these arguments
function support.run(words, input)
  local quoted = {}
  for i, word in ipairs(words) do quoted[i] = quote(word) end
  return support.shell(quote(support.onn) .. " " .. table.concat(quoted, " "), input)
end

return support
