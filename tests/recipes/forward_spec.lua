local core = require "onn.core.ops"
local program = require "onn.core.program"
local stores = require "onn.core.store"
local support = require "tests.support"

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
