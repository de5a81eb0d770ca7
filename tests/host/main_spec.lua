local support = require "tests.support"
local run, shell, quote, onn = support.run, support.shell, support.quote, support.onn

describe("onn", function()
  local folder
  setup(function() folder = support.scratch() end)
  teardown(support.scratch_remove)

  it("runs code, modules and scripts in order, with their arguments", function()
    local file = support.write(folder .. "/script.lua", "print(x, arg[0], ...)")
    local status, out = run { "-l", "lfs", "-e", "x = package.loaded.lfs ~= nil", file, "a", "b c" }
    assert.equal(0, status)
    assert.equal("true\t" .. file .. "\ta\tb c\n", out)
  end)

  it("runs standard input", function()
    assert.same({ 0, "5\n", "" }, { run({}, "print(2 + 3)") })
    assert.same({ 0, "-\tz\n", "" }, { run({ "-", "z" }, "print(arg[0], ...)") })
  end)

  it("answers an uncaught error with a traceback and 1", function()
    local status, out, err = run { "-e", "local function f() error 'boom' end f()" }
    assert.equal(1, status)
    assert.equal("", out)
    assert.matches("^onn: %(command line%):1: boom\nstack traceback:", err)
  end)

  it("answers a wrong ONN_CPU in one line", function()
    local status, out, err = shell("ONN_CPU=foo " .. quote(onn) .. " -e 'print(1)'")
    assert.same({ 1, "" }, { status, out })
    assert.equal("onn: ONN_CPU=foo: expected amx_bf16, avx512_bf16, avx512, avx2 or sse4.1\n", err)
  end)

  it("answers error objects and error() without dying", function()
    local status, _, err = run { "-e", "error(setmetatable({}, { __tostring = function() return 'speaks' end }))" }
    assert.equal(1, status)
    assert.matches("^onn: speaks\nstack", err)
    status, _, err = run { "-e", "error({})" }
    assert.equal(1, status)
    assert.matches("error object is a table value", err)
    assert.same({ 1, "", "" }, { run { "-e", "error()" } })
  end)

  it("answers the user's errors with one line and their code", function()
    local fail = "local ok, cli = pcall(require, 'onn.cli') cli.fail('no such model', 2)"
    assert.same({ 2, "", "onn: no such model\n" }, { run { "-e", fail } })
    assert.same({ 1, "", "onn: gone\n" }, { run { "-e", "require('onn.cli').fail 'gone'" } })
  end)

  it("answers a budget that ran out with one line and both numbers", function()
    local code = "local t = require 'onn.core.tensor' t.set_budget(1000) "
    assert.same({ 1, "", "onn: memory budget: 4096 bytes asked, 0 of 1000 in use (--memory and --ram set the budget)\n" },
      { run { "-e", code .. "t.new('f32', { 1000 })" } })
    assert.same({ 0, "false\tmemory budget: 4096 bytes asked, 0 of 1000 in use\n", "" },
      { run { "-e", code .. "print(pcall(t.new, 'f32', { 1000 }))" } })
  end)

  it("closes the state on os.exit", function()
    local code = "p = newproxy(true) getmetatable(p).__gc = function() print 'closed' end os.exit(%s)"
    assert.same({ 7, "closed\n", "" }, { run { "-e", code:format "7" } })
    assert.same({ 0, "closed\n", "" }, { run { "-e", code:format "true" } })
    assert.same({ 1, "closed\n", "" }, { run { "-e", code:format "false" } })
    local inside = "coroutine.wrap(function() " .. code:format "3" .. " end)()"
    assert.same({ 3, "closed\n", "" }, { run { "-e", inside } })
  end)

  it("refuses bytecode", function()
    local file = support.write(folder .. "/chunk.lua", string.dump(function() return 1 end))
    local status, _, err = run { file }
    assert.equal(1, status)
    assert.matches("wrong mode", err)
  end)

  it("refuses unknown options and words", function()
    local status, _, err = run { "-x" }
    assert.equal(2, status)
    assert.matches("unknown option %-x", err)
    status, _, err = run { "-e" }
    assert.equal(2, status)
    assert.matches("%-e needs a value", err)
    status, _, err = run { "no-such-recipe" }
    assert.equal(2, status)
    assert.matches("neither a file nor a recipe", err)
  end)

  it("prints its version and help", function()
    local status, out = run { "--version" }
    assert.equal(0, status)
    assert.matches("^onn %d+%.%d+%.%d+", out)
    assert.matches("LuaJIT 2%.1", out)
    assert.matches("\ncpu: ", out)
    assert.matches("\nback ends: cpu", out)
    status, out = run { "--help" }
    assert.equal(0, status)
    assert.matches("^usage: onn ", out)
  end)

  it("ends quietly when its reader is gone", function()
    local status, out, err = shell("{ " .. quote(onn) .. " -e 'while true do print(1) end'; echo $? >&2; } | head -n 1")
    assert.same({ 0, "1\n", "141\n" }, { status, out, err })
  end)

  it("says when standard output cannot be written", function()
    local status, _, err = shell(quote(onn) .. " -e 'print(1)' >/dev/full")
    assert.equal(1, status)
    assert.matches("could not be written", err)
  end)

  describe("signals", function()
    -- Starts a script that prints a line when it is ready, then sends it the signals, 0.3 s apart.
    local function signalled(code, ...)
      local command = { ("%s -e %s & pid=$!; sleep 0.4"):format(quote(onn), quote(code)) }
      for _, name in ipairs { ... } do command[#command + 1] = ("kill -%s $pid; sleep 0.3"):format(name) end
      command[#command + 1] = "wait $pid; echo $?"
      local _, out, err = shell(table.concat(command, "; "))
      return out, err
    end

    it("stop a plain script: 130 and 143", function()
      local busy = "while true do local t = {} for i = 1, 10 do t[i] = tostring(i) end end"
      local out, err = signalled(busy, "INT")
      assert.equal("130\n", out)
      assert.equal("onn: interrupted\n", err)
      assert.equal("143\n", (signalled(busy, "TERM")))
    end)

    it("stop a compiled loop within a second", function()
      assert.equal("130\n", (signalled("while true do end", "INT")))
    end)

    local training = [[
      local signals = require 'onn.core.signals'
      signals.handle(true)
      local x = 0
      while %s do for i = 1, 1e6 do x = x + 1 end end
      print('saved', signals.pending())]]

    it("leave a program that polls to end by itself", function()
      assert.equal("saved\t2\n130\n", (signalled(training:format "not signals.pending()", "INT")))
      assert.equal("saved\t15\n143\n", (signalled(training:format "not signals.pending()", "TERM")))
    end)

    it("end it at once the second time", function()
      assert.equal("130\n", (signalled(training:format "true", "INT", "INT")))
    end)
  end)

  describe("prompt", function()
    it("prints values, goes on after errors, and takes unfinished input", function()
      local lines = "1 + 1\nfor i = 1, 2 do\nprint(i) end\n= 'x'\nerror 'boo'\n3\n"
      local status, out, err = run({ "-i" }, lines)
      assert.equal(0, status)
      assert.equal("2\n1\n2\nx\n3\n", out)
      assert.matches("boo", err)
    end)

    it("completes globals, fields and keywords", function()
      local repl = require "onn.repl"
      assert.equal("ction", repl.complete "x = fun")
      assert.equal("mat", repl.complete "string.for")
      local _, shown = repl.complete "string.re"
      assert.matches("rep  reverse", shown)
      assert.is_nil(repl.complete "nothing.here.")
    end)
  end)

  describe("installed", function()
    it("finds its library and recipes beside itself", function()
      local place = folder .. "/usr/bin"
      local share = folder .. "/usr/share/onn"
      local copy = ("mkdir -p %s %s/lua/onn %s/recipes && cp %s %s/onn"):format(place, share, share, quote(onn), place)
      assert.equal(0, (shell(copy)))
      support.write(share .. "/lua/onn/there.lua", "return 'library'")
      support.write(share .. "/recipes/greet.lua", "-- greet: says hello\nprint(require 'onn.there', ...)")
      local command = "cd / && ONN_HOME= " .. place .. "/onn "
      assert.same({ 0, "library\tyou\n", "" }, { shell(command .. "greet you") })
      local _, out = shell(command .. "--help")
      assert.matches("\n  greet +says hello\n", out)
      local status, _, err = shell(command .. "greeet")
      assert.equal(2, status)
      assert.matches("nearest recipe: greet", err)
    end)
  end)
end)
