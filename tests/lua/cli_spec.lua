local cli = require "onn.cli"
local support = require "tests.support"

local spec = {
  name = "demo", summary = "shows options", example = "onn demo model --max-tokens 3",
  arguments = { { "MODEL", "model directory" }, { "TEXT", "text", optional = true } },
  options = {
    { "max-tokens", type = "integer", default = 50, min = 1, help = "how many" },
    { "lr", type = "number", default = 2e-4 },
    { "shuffle", negate = true, default = true },
    { "betas", type = "list", of = "number", default = { 0.9, 0.999 } },
    { "targets", type = "list" },
    { "set", type = "pair" },
    { "stop", type = "string", repeats = true },
    { "resume", type = "string", optional = true },
    { "budget", type = "duration" },
    { "ratio", type = "share" },
    { "loss", type = "string", choices = { "all", "completion" } },
  },
}

local function parse(...) return cli.parse(spec, { ... }) end

local function misuse(...)
  local ok, e = pcall(cli.parse, spec, { ... })
  assert.is_false(ok)
  assert.is_true(cli.is_user_error(e))
  assert.equal(2, e.code)
  return e.message
end

describe("cli.parse", function()
  it("gives defaults and says what was given", function()
    local opt = parse("m", "--max-tokens", "3", "--json")
    assert.equal("m", opt.model)
    assert.is_nil(opt.text)
    assert.equal(3, opt.max_tokens)
    assert.equal(2e-4, opt.lr)
    assert.same({ 0.9, 0.999 }, opt.betas)
    assert.is_true(opt.json)
    assert.is_false(opt.dry_run)
    assert.is_true(opt.shuffle)
    assert.equal("auto", opt.device)
    assert.same({ model = true, max_tokens = true, json = true }, opt._given)
  end)

  it("reads every type", function()
    local opt = parse("m", "words", "--lr=1e-3", "--no-shuffle", "--betas", "0.8,0.9", "--targets", "q_proj, v_proj",
      "--set", "width=64", "--set", "name=a=b", "--stop", "x", "--stop=y", "--resume", "--budget", "1m30s", "--ratio", "20%",
      "--memory", "4GB", "--ram=1.5GiB", "--device", "cuda:1", "--dtype", "bf16", "-q")
    assert.equal("words", opt.text)
    assert.equal(1e-3, opt.lr)
    assert.is_false(opt.shuffle)
    assert.same({ 0.8, 0.9 }, opt.betas)
    assert.same({ "q_proj", "v_proj" }, opt.targets)
    assert.same({ width = "64", name = "a=b" }, opt.set)
    assert.same({ "x", "y" }, opt.stop)
    assert.is_true(opt.resume)
    assert.equal(90, opt.budget)
    assert.equal(0.2, opt.ratio)
    assert.equal(4e9, opt.memory)
    assert.equal(1.5 * 1024 ^ 3, opt.ram)
    assert.equal("cuda:1", opt.device)
    assert.is_true(opt.quiet)
    assert.equal("here", parse("m", "--resume", "here").resume)
    assert.is_true(parse("m", "--resume", "--json").resume)
  end)

  it("takes values and arguments that begin with a minus sign", function()
    assert.equal(-0.5, parse("m", "--lr", "-0.5").lr)
    assert.equal("-5 degrees", parse("m", "-5 degrees").text)
    assert.equal("--json", parse("m", "--", "--json").text)
    assert.equal("-", parse("m", "-").text)
  end)

  it("names the option, what was found and what was expected", function()
    assert.matches("%-%-max%-tokens: expected an integer, got 'x'", misuse("m", "--max-tokens", "x"))
    assert.matches("%-%-max%-tokens: expected an integer of at least 1, got '0'", misuse("m", "--max-tokens=0"))
    assert.matches("%-%-max%-tokens: expected an integer, got '1.5'", misuse("m", "--max-tokens", "1.5"))
    assert.matches("%-%-lr: expected a number, got 'nan'", misuse("m", "--lr", "nan"))
    assert.matches("%-%-lr: expected a number, got '1e999'", misuse("m", "--lr", "1e999"))
    assert.matches("%-%-loss: expected one of 'all', 'completion', got 'some'", misuse("m", "--loss", "some"))
    assert.matches("%-%-memory: expected a size such as .*, got '4XB'", misuse("m", "--memory", "4XB"))
    assert.matches("%-%-memory: expected a size above zero", misuse("m", "--memory", "0"))
    assert.matches("%-%-device: expected cpu, cuda, cuda:N or auto, got 'gpu'", misuse("m", "--device", "gpu"))
    assert.matches("%-%-set: expected KEY=VALUE, got 'width'", misuse("m", "--set", "width"))
    assert.matches("%-%-betas: expected a list", misuse("m", "--betas", "1,,2"))
    assert.matches("%-%-json takes no value", misuse("m", "--json=yes"))
    assert.matches("%-%-lr needs a value", misuse("m", "--lr"))
    assert.matches("%-%-lr needs a value", misuse("m", "--lr", "--json"))
    assert.matches("missing argument 'MODEL'", misuse())
    assert.matches("too many arguments", misuse("m", "t", "u"))
  end)

  it("suggests the nearest option", function()
    assert.matches("unknown option '%-%-max%-tokns'; did you mean '%-%-max%-tokens'%?", misuse("m", "--max-tokns", "3"))
    assert.matches("did you mean '%-%-quiet'%?", misuse("m", "--quite"))
    assert.matches("unknown option '%-%-zzzzzzzzzz' %(", misuse("m", "--zzzzzzzzzz"))
  end)

  it("prints help with an example, and one line on misuse", function()
    local folder = support.scratch()
    local file = support.write(folder .. "/demo.lua", [[
      local cli = require "onn.cli"
      local opt = cli.parse { name = "demo", summary = "shows", example = "onn demo model", arguments = { { "MODEL", "dir" } } }
      cli.print("words")
      if opt.json then cli.json { model = opt.model } end]])
    local status, out = support.run { file, "--help" }
    assert.equal(0, status)
    assert.matches("Usage: onn demo", out)
    assert.matches("example:\n  onn demo model", out)
    for _, name in ipairs { "json", "dry-run", "device", "memory", "ram", "threads", "seed", "dtype", "config", "quiet",
      "profile" } do
      assert.truthy(out:find("--" .. name, 1, true), name)
    end
    local err
    status, out, err = support.run { file, "m", "--sede", "3" }
    assert.same({ 2, "" }, { status, out })
    assert.matches("^onn: demo: unknown option '%-%-sede'; did you mean '%-%-seed'%?[^\n]*\n$", err)
    assert.same({ 0, "words\n", "" }, { support.run { file, "m" } })
    assert.same({ 0, "", "" }, { support.run { file, "m", "--quiet" } })
    if pcall(require, "onn.core.json") then
      assert.same({ 0, '{"model":"m"}\n', "" }, { support.run { file, "m", "--json" } })
    end
    support.scratch_remove()
  end)
end)

describe("cli.check", function()
  it("passes values on and fails with the message", function()
    assert.equal(5, cli.check(5))
    local ok, e = pcall(cli.check, nil, "model.safetensors: no such file", "io")
    assert.is_false(ok)
    assert.equal("model.safetensors: no such file", tostring(e))
    assert.equal(1, e.code)
  end)
end)

describe("cli.table", function()
  it("aligns words left, numbers right, in characters", function()
    local rows = { { name = "é", size = 5 }, { name = "layer", size = 1234 }, { size = 1 } }
    assert.equal("name   bytes\né          5\nlayer   1234\n-          1",
      cli.table(rows, { "name", { "size", title = "bytes" } }))
    assert.equal("name   size\né      5.00\nlayer  1234.00\n-      1.00",
      cli.table(rows, { "name", { "size", format = "%.2f", align = "left" } }))
  end)
end)
