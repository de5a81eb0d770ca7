-- Runs the specs: build/onn tests/run.lua [--jobs N] [--timeout SECONDS] [--check 'NAME=COMMAND'] [FILES or FOLDERS]
-- Every spec file runs under busted in a child process of its own, so a crash is one failed test. Each --check is a shell
-- command that counts as one test. Last line: `N passed, N failed`; exit status 1 if any failed or none ran.
local lfs = require "lfs"

local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end
local function escape(text) return (tostring(text):gsub("[\\\n\t]", { ["\\"] = "\\\\", ["\n"] = "\\n", ["\t"] = "  " })) end
local function unescape(text) return (text:gsub("\\(.)", { n = "\n", ["\\"] = "\\" })) end

-- The child: one spec file; a line `kind <tab> name <tab> message` for each test, then `end`.
local function child(file, results)
  local busted = require "busted.core" ()
  require "busted" (busted)
  local out = assert(io.open(results, "w"))
  out:setvbuf "line"

  local function name_of(element)
    local names = {}
    while element and element.descriptor ~= "file" and element.descriptor ~= "suite" do
      table.insert(names, 1, tostring(element.name or element.descriptor))
      element = busted.context.parent(element)
    end
    return #names > 0 and table.concat(names, " ") or file
  end
  local function tell(kind)
    return function(element, _, message, trace)
      local text = message == nil and "" or tostring(message)
      if kind == "fail" and type(trace) == "table" and trace.traceback then text = text .. "\n" .. trace.traceback end
      out:write(kind, "\t", escape(name_of(element)), "\t", escape(text), "\n")
      return nil, true
    end
  end
  busted.subscribe({ "failure" }, tell "fail")
  busted.subscribe({ "error" }, tell "fail")
  -- A test that calls pending() is told of twice; one that is declared with it only at its end.
  local skipped = {}
  busted.subscribe({ "pending" }, function(element, ...)
    skipped[element] = true
    return tell "skip" (element, ...)
  end)
  busted.subscribe({ "test", "end" }, function(element, _, status)
    if status == "success" then out:write("pass\t", escape(name_of(element)), "\t\n") end
    if status == "pending" and not skipped[element] then out:write("skip\t", escape(name_of(element)), "\t\n") end
    return nil, true
  end)

  require "busted.luajit" ()
  local load_files = require "busted.modules.test_file_loader" (busted, { "lua" })
  load_files({ file }, { "_spec" }, { excludes = {}, recursive = false })
  require "busted.execute" (busted) (1, { seed = 1 })
  out:write "end\t\t\n"
  out:close()
  os.exit(0)
end

local function find_specs(path, found)
  local kind = lfs.attributes(path, "mode")
  if kind == "directory" then
    local entries = {}
    for entry in lfs.dir(path) do
      if entry:sub(1, 1) ~= "." and entry ~= "fixtures" then entries[#entries + 1] = entry end
    end
    table.sort(entries)
    for _, entry in ipairs(entries) do
      local inner = path .. "/" .. entry
      if lfs.attributes(inner, "mode") == "directory" or entry:find "_spec%.lua$" then find_specs(inner, found) end
    end
  elseif kind then
    found[#found + 1] = path
  else
    io.stderr:write("tests/run.lua: no such file or folder: ", path, "\n")
    os.exit(2)
  end
  return found
end

local function options(words)
  local o = { jobs = 1, timeout = 300, checks = {}, paths = {} }
  local i = 1
  while words[i] do
    local word = words[i]
    if word == "--jobs" or word == "--timeout" then
      o[word:sub(3)] = assert(tonumber(words[i + 1]), word .. " needs a number")
      i = i + 1
    elseif word == "--check" then
      local name, command = (words[i + 1] or ""):match "^(.-)=(.+)$"
      o.checks[#o.checks + 1] = { name = assert(name, "--check needs NAME=COMMAND"), command = command }
      i = i + 1
    else
      o.paths[#o.paths + 1] = word:gsub("/$", "")
    end
    i = i + 1
  end
  if #o.paths == 0 then o.paths[1] = "tests" end
  return o
end

local function start(job, timeout)
  local command = ("timeout --foreground --kill-after=10 %d sh -c %s </dev/null 2>&1"):format(timeout, quote(job.command))
  job.pipe = assert(io.popen(command .. "; echo \"[exit $?]\"", "r"))
end

-- wait(job) -> output, exit status
local function wait(job)
  local text = job.pipe:read "*a"
  job.pipe:close()
  local output, status = text:match "^(.*)%[exit (%d+)%]\n$"
  return output or text, tonumber(status or 1)
end

local function last_lines(text, count)
  local lines = {}
  for line in text:gmatch "[^\n]+" do lines[#lines + 1] = "    | " .. line end
  return table.concat(lines, "\n", math.max(1, #lines - count + 1))
end

local function why(status, timeout)
  if status == 124 or status == 137 then return ("did not end within %d s"):format(timeout) end
  if status > 128 then return ("died of signal %d"):format(status - 128) end
  return ("ended with status %d"):format(status)
end

local total = { pass = 0, fail = 0, skip = 0 }
local failures = {}

local function failed(name, message)
  total.fail = total.fail + 1
  failures[#failures + 1] = name
  print("FAILED " .. name)
  if message ~= "" then print("  " .. message:gsub("\n", "\n  ")) end
end

local function finish_check(job, output, status, o)
  if status == 0 then
    total.pass = total.pass + 1
    print(("%-44s passed"):format(job.name))
  else
    failed(job.name, why(status, o.timeout) .. "\n" .. last_lines(output, 60))
  end
end

local function finish_spec(job, output, status, o)
  local count, ended, problems = { pass = 0, fail = 0, skip = 0 }, false, {}
  for line in io.lines(job.results) do
    local kind, name, message = line:match "^(%a+)\t(.-)\t(.*)$"
    if kind == "end" then
      ended = true
    elseif kind then
      count[kind] = count[kind] + 1
      if kind ~= "pass" then problems[#problems + 1] = { kind, unescape(name), unescape(message) } end
    end
  end
  os.remove(job.results)
  local seconds = os.time() - job.started
  print(("%-44s %d passed, %d failed, %d skipped  %d s"):format(job.name, count.pass, count.fail, count.skip, seconds))
  total.pass, total.skip = total.pass + count.pass, total.skip + count.skip
  for _, p in ipairs(problems) do
    if p[1] == "skip" then
      print(("SKIPPED %s: %s%s"):format(job.name, p[2], p[3] ~= "" and " (" .. p[3] .. ")" or ""))
    else
      failed(job.name .. ": " .. p[2], p[3])
    end
  end
  if not ended or status ~= 0 then
    failed(job.name, why(status, o.timeout))
  elseif count.pass + count.fail + count.skip == 0 then
    failed(job.name, "holds no test")
  end
  if (not ended or count.fail > 0) and output:find "%S" then print(last_lines(output, 40)) end
end

local function main(words)
  local o = options(words)
  local onn = assert(lfs.symlinkattributes("/proc/self/exe", "target"))
  local jobs = {}
  for _, check in ipairs(o.checks) do
    check.finish = finish_check
    jobs[#jobs + 1] = check
  end
  for _, path in ipairs(o.paths) do
    for _, file in ipairs(find_specs(path, {})) do
      local results = os.tmpname()
      jobs[#jobs + 1] = {
        name = file, results = results, finish = finish_spec,
        command = ("ONN=%s exec %s tests/run.lua --child %s %s"):format(quote(onn), quote(onn), quote(file), quote(results)),
      }
    end
  end
  local started = 0
  for i, job in ipairs(jobs) do
    while started < #jobs and started < i + o.jobs - 1 do
      started = started + 1
      jobs[started].started = os.time()
      start(jobs[started], o.timeout)
    end
    local output, status = wait(job)
    job.finish(job, output, status, o)
    io.stdout:flush()
  end
  if #failures > 0 then print("\nfailed:\n  " .. table.concat(failures, "\n  ")) end
  if total.skip > 0 then print(("%d skipped"):format(total.skip)) end
  print(("%d passed, %d failed"):format(total.pass, total.fail))
  os.exit((total.fail > 0 or total.pass == 0) and 1 or 0)
end

if arg[1] == "--child" then child(arg[2], arg[3]) else main(arg) end
