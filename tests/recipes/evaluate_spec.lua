local json = require "onn.core.json"
local program = require "onn.core.program"
local stores = require "onn.core.store"
local support = require "tests.support"
local tiny = require "tests.tiny"

local fixtures = program.home .. "/tests/lua/fixtures/peft"

describe("onn evaluate", function()
  local folder, model
  setup(function()
    folder = support.scratch()
    model = tiny.model(folder .. "/model")
  end)
  teardown(support.scratch_remove)

  local function evaluate(...)
    local status, out, err = support.run { "evaluate", ... }
    assert.equal(0, status, err)
    return out
  end

  it("gives the reference's loss on stored ids, with an adapter", function()
    local expected = stores.open(fixtures .. "/expected.safetensors")
    local data = folder .. "/ids.safetensors"
    local function part(name) return expected:read(name):narrow(1, 1, 2):contiguous() end
    assert(stores.write(data, { input_ids = part "input_ids", labels = part "labels" }, { format = "pt" }))
    local result = json.decode(evaluate(fixtures .. "/model", data, "--adapter", fixtures .. "/all", "--json"))
    local want = expected:read("losses"):totable()[1]
    assert.is_true(math.abs(result.loss - want) <= 1e-4 * want)
    assert.is_true(math.abs(result.perplexity - math.exp(result.loss)) < 1e-6 * result.perplexity)
    assert.equal(2 * 11 - 4, result.tokens)
    assert.is_nil(result.bits_per_byte)
  end)

  it("counts bits per byte of text, the same whatever the batch", function()
    local text = support.write(folder .. "/text.txt", ("The red cat sees a small bird. "):rep(20))
    local result = json.decode(evaluate(model, text, "--seq-len", "64", "--json"))
    assert.is_true(math.abs(result.bits_per_byte - result.loss * result.tokens / math.log(2) / (31 * 20)) < 1e-9)
    assert.equal(result.loss, json.decode(evaluate(model, text, "--seq-len", "64", "--batch", "1", "--json")).loss)
    local shown = evaluate(model, text, "--seq-len", "64")
    assert.matches("loss +%d+%.%d+ over %d+ tokens\nperplexity +%d+%.%d+\nbits per byte +%d+%.%d+\n", shown)
  end)

  it("counts completions only, unless all are asked for", function()
    local rows = tiny.data(folder .. "/rows.jsonl", 10)
    local part, all = json.decode(evaluate(model, rows, "--json")), json.decode(evaluate(model, rows, "--json", "--loss", "all"))
    assert.is_true(part.tokens < all.tokens)
  end)

  it("is of whole rows, whatever length of training a settings file names", function()
    local rows, settings = tiny.data(folder .. "/whole.jsonl", 10), model .. "/universal_config.json"
    local want = json.decode(evaluate(model, rows, "--json"))
    support.write(settings, json.encode { config = { batch_size = 2, seq_len = 4, micro_batch = 1 } })
    local got = json.decode(evaluate(model, rows, "--json"))
    os.remove(settings)
    assert.same(want, got)
  end)
end)
