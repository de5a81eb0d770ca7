local core = require "onn.core.ops"
local program = require "onn.core.program"
local stores = require "onn.core.store"
local support = require "tests.support"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"
local tiny = require "tests.tiny"

local fixtures = program.home .. "/tests/lua/fixtures/peft"

local function largest(t) return core.reduce(core.unary(t:to("f32"):contiguous():view { t:numel() }, "abs"), "max"):item() end
local function distance(a, b) return largest(core.binary(a, b:view(a:shape()), "sub")) / largest(a) end

describe("onn forward", function()
  local folder, input, expected
  setup(function()
    folder = support.scratch()
    expected = stores.open(fixtures .. "/expected.safetensors")
    input = folder .. "/input.safetensors"
    -- the first two rows, of which the fixture's first loss is
    local function part(name) return expected:read(name):narrow(1, 1, 2):contiguous() end
    assert(stores.write(input, { input_ids = part "input_ids", labels = part "labels" }, { format = "pt" }))
  end)
  teardown(support.scratch_remove)

  local function forward(...)
    local output = folder .. "/output.safetensors"
    local status, out, err = support.run { "forward", fixtures .. "/model", "--input", input, "--output", output, ... }
    assert.equal(0, status, err)
    assert.equal("", out)
    return assert(stores.open(output))
  end

  it("writes the reference's logits, and the head's input", function()
    local got = forward "--hidden"
    assert.same({ "hidden", "logits" }, got:names())
    assert.same({ 2, 12, 48 }, got:info("logits").shape)
    assert.same({ 2, 12, 16 }, got:info("hidden").shape)
    assert.is_true(distance(expected:read("logits"):narrow(1, 1, 2):contiguous(), got:read "logits") <= 1e-4)
  end)

  it("puts an adapter on, and writes its loss and gradients", function()
    local got = forward("--adapter", fixtures .. "/all", "--gradients")
    assert.is_true(distance(expected:read("logits.all"):narrow(1, 1, 2):contiguous(), got:read "logits") <= 1e-4)
    assert.is_true(math.abs(got:read("loss"):item() - expected:read("losses"):totable()[1]) <= 1e-4)
    assert.same({ 2, 16 }, got:info("grad.model.layers.1.self_attn.q_proj.A").shape)
    assert.same({ 24, 2 }, got:info("grad.model.layers.0.mlp.up_proj.B").shape)
    assert.equal(2 + 2 * 2 * 7, #got:names())
  end)

  it("writes the gradients of all weights with --full", function()
    local got, model = forward("--full", "--gradients"), stores.open(fixtures .. "/model")
    assert.equal(2 + #model:names(), #got:names())
    for _, name in ipairs(model:names()) do assert.same(model:info(name).shape, got:info("grad." .. name).shape) end
  end)

  it("streams what is larger than memory: the same bits, gradients too; refuses logits that do not fit", function()
    local wide = tiny.model(folder .. "/wide", { num_hidden_layers = 8, hidden_size = 256, intermediate_size = 512 })
    local adapter, ids = folder .. "/wide-adapter", folder .. "/ids.safetensors"
    local status, _, err = support.run { "train", wide, tiny.data(folder .. "/rows.jsonl", 4), "--out", adapter, "--rank", "2", "--steps", "1",
      "-q" }
    assert.equal(0, status, err)
    local rows = tensors.from_table({ { 1, 2, 3, 4, 5, 6 }, { 7, 8, 9, 10, 11, 12 } }, "i64")
    assert(stores.write(ids, { input_ids = rows, labels = rows }, { format = "pt" }))
    local function hash(...)
      local output = folder .. "/wide-output.safetensors"
      local how = { "forward", wide, "--input", ids, "--output", output, "--adapter", adapter, "--gradients", "--threads", "1", ... }
      local done, _, message = support.run(how)
      assert.equal(0, done, message)
      return system.hash_file(output)
    end
    local whole = hash()
    for _, how in ipairs { { "--memory", "9MB" }, { "--slots", "2", "--no-prefetch" }, { "--slots", "3", "--chunk", "2" } } do
      assert.equal(whole, hash(unpack(how)), table.concat(how, " "))
    end
    status, _, err = support.run { "forward", wide, "--input", ids, "--output", folder .. "/none", "--memory", "1MB" }
    assert.equal(1, status)
    assert.matches("^onn: forward: logits of %(2, 6, 300%) take 14.4 KB, and the run with them at least [%d.]+ MB; the budget is 1.00 MB", err)
  end)

  it("refuses in one line", function()
    local function refused(status, pattern, ...)
      local got, _, err = support.run { "forward", fixtures .. "/model", ... }
      assert.equal(status, got, err)
      assert.matches(pattern, err)
      assert.equal(1, select(2, err:gsub("\n", "")), err)
    end
    local output = folder .. "/none.safetensors"
    refused(2, "%-%-input FILE and %-%-output FILE are needed", "--output", output)
    refused(2, "wants something trained", "--input", input, "--output", output, "--gradients")
    refused(1, "no tensor 'input_ids'", "--input", fixtures .. "/model/model.safetensors", "--output", output)
    local big = folder .. "/big.safetensors"
    assert(stores.write(big, { input_ids = require("onn.core.tensor").from_table({ { 1, 48 } }, "i64") }, { format = "pt" }))
    refused(1, "token 2 of row 1 is 48; the model has ids 0 to 47", "--input", big, "--output", output)
  end)
end)
