-- train: every option does what it says, on a tiny model. Resuming has a spec of its own.
local json = require "onn.core.json"
local stores = require "onn.core.store"
local support = require "tests.support"
local system = require "onn.core.system"
require "onn.tensor"
local tiny = require "tests.tiny"

local fixtures = require("onn.core.program").home .. "/tests/lua/fixtures/peft"

describe("onn train", function()
  local folder, model, rows
  setup(function()
    folder = support.scratch()
    model = tiny.model(folder .. "/model")
    rows = tiny.data(folder .. "/rows.jsonl", 24)
  end)
  teardown(support.scratch_remove)

  -- Trains, and returns the log's rows and stderr.
  local count = 0
  local function train(...)
    count = count + 1
    local out = folder .. "/out" .. count
    local status, text, err = support.run { "train", model, rows, "--out", out, "--log", out .. ".log", "--threads", "1", ... }
    assert.equal(0, status, err)
    local log = {}
    for line in io.lines(out .. ".log") do log[#log + 1] = assert(json.decode(line)) end
    return log, out, err, text
  end
  local function refused(status, pattern, ...)
    local got, _, err = support.run { "train", model, rows, "--out", folder .. "/none", "-q", ... }
    assert.equal(status, got, err)
    assert.matches(pattern, err)
    assert.equal(1, select(2, err:gsub("\n", "")), err)
    assert.is_false(system.exists(folder .. "/none"))
  end
  local function config_of(out) return json.decode(support.read(out .. "/adapter_config.json")) end
  local function losses(log)
    local list = {}
    for i, r in ipairs(log) do list[i] = r.loss end
    return list
  end

  it("logs one whole object per update", function()
    local log = train("--steps", "3", "--batch", "4")
    assert.equal(3, #log)
    for i, r in ipairs(log) do
      for _, key in ipairs { "step", "epoch", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "seconds", "bytes_streamed",
        "device_peak", "ram_peak", "limit_share" } do
        assert.equal("number", type(r[key]), key)
      end
      assert.equal(i, r.step)
      assert.is_false(r.recomputed)
      assert.equal("compute", r.bound)
    end
  end)

  it("gives PEFT's losses, from PEFT's adapter, with AdamW's settings and clipping", function()
    local expected = stores.open(fixtures .. "/expected.safetensors")
    local data = folder .. "/ids.safetensors"
    assert(stores.write(data, { input_ids = expected:read "input_ids", labels = expected:read "labels" }, { format = "pt" }))
    local status, _, err = support.run { "train", fixtures .. "/model", data, "--adapter", fixtures .. "/all", "--out", folder .. "/peft",
      "--log", folder .. "/peft.log", "--batch", "2", "--epochs", "3", "--no-shuffle", "--lr", "0.01", "--schedule", "constant",
      "--warmup", "0", "--clip", "0.5", "--weight-decay", "0.1", "--betas", "0.8,0.95", "-q" }
    assert.equal(0, status, err)
    local want, step = expected:read("losses"):totable(), 0
    for line in io.lines(folder .. "/peft.log") do
      step = step + 1
      local got = json.decode(line).loss
      assert.is_true(math.abs(got - want[step]) <= 1e-4 * want[step], ("step %d: %.7f, expected %.7f"):format(step, got, want[step]))
    end
    assert.equal(#want, step)
  end)

  it("moves the rate by schedule and warm-up", function()
    local function rates(...)
      local list = {}
      for i, r in ipairs(train("--steps", "6", "--lr", "1", "--rank", "1", ...)) do list[i] = tonumber(("%.4f"):format(r.lr)) end
      return list
    end
    assert.same({ 1, 1, 1, 1, 1, 1 }, rates("--schedule", "constant", "--warmup", "0"))
    assert.same({ 0.3333, 0.6667, 1, 0.75, 0.5, 0.25 }, rates("--schedule", "linear", "--warmup", "2"))
    assert.same({ 0.25, 0.5, 0.75, 1, 0.75, 0.25 }, rates("--schedule", "cosine", "--warmup", "0.5"))
  end)

  it("clips the gradient, or with 0 does not", function()
    local function first_move(...)
      local _, out = train("--steps", "1", "--batch", "24", "--lr", "0.01", "--warmup", "0", "--betas", "0,0", ...)
      local store = stores.open(out .. "/adapter_model.safetensors")
      return store:read("base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"):abs():sum("all"):item()
    end
    -- Adam's first step is the rate times g / (|g| + eps): only a gradient near eps shows what it was divided by
    assert.is_true(first_move("--clip", "1e-9") < first_move("--clip", "0") / 2)
  end)

  it("trains the layers that are named, and no others", function()
    for text, want in pairs { ["first:1,last:1"] = { 0, 2 }, ["1"] = { 1 }, ["0-1"] = { 0, 1 }, all = json.null } do
      local _, out = train("--steps", "1", "--layers", text)
      local got = config_of(out).layers_to_transform
      assert.same(want, got == json.null and got or { unpack(got) }, text)
    end
    local _, out = train("--steps", "1", "--layers", "last_k", "--count", "2")
    assert.same({ 1, 2 }, { unpack(config_of(out).layers_to_transform) })
    local file = support.write(folder .. "/odd.lua",
      "return function(stages) local s = {} for i, one in ipairs(stages) do s[i] = one.index % 2 end return s end")
    _, out = train("--steps", "1", "--layers", file, "--ratio", "34%")
    assert.same({ 1 }, { unpack(config_of(out).layers_to_transform) })
  end)

  it("puts adapters on the targets that are named", function()
    local _, out = train("--steps", "1", "--targets", "q_proj,v_proj", "--rank", "3", "--alpha", "12")
    local config = config_of(out)
    assert.same({ "q_proj", "v_proj" }, { unpack(config.target_modules) })
    assert.equal(3, config.r)
    assert.equal(12, config.lora_alpha)
    assert.equal(3 * 2 * 2, #stores.open(out .. "/adapter_model.safetensors"):names())
  end)

  it("gives the same losses whatever the micro-batch and recompute", function()
    local want = losses((train("--steps", "3", "--batch", "4", "--recompute", "off", "--dropout", "0.2")))
    for _, extra in ipairs { { "--micro-batch", "1" }, { "--micro-batch", "2" }, { "--recompute", "on" }, { "--threads", "2" } } do
      assert.same(want, losses((train("--steps", "3", "--batch", "4", "--dropout", "0.2", unpack(extra)))), table.concat(extra, " "))
    end
    assert.not_same(want, losses((train("--steps", "3", "--batch", "4"))))
  end)

  it("goes in the file's order without shuffling, by its seed with it", function()
    local plain = losses((train("--epochs", "1", "--batch", "4", "--lr", "0", "--no-shuffle")))
    local one = losses((train("--epochs", "1", "--batch", "4", "--lr", "0", "--seed", "1")))
    local two = losses((train("--epochs", "1", "--batch", "4", "--lr", "0", "--seed", "2")))
    assert.equal(6, #plain)
    assert.not_same(one, two)
    assert.not_same(plain, one)
  end)

  it("masks the prompt, or with --loss all does not; packs; remaps keys; fills templates", function()
    local function loss(...) return train("--steps", "1", "--batch", "64", "--lr", "0", ...)[1].loss end
    local completion = loss()
    assert.not_equal(completion, loss("--loss", "all"))
    assert.is_true(math.abs(completion - loss("--pack")) < 1e-5 * completion)
    local list, turned = tiny.rows(24), {}
    for i, row in ipairs(list) do turned[i] = json.encode { question = row.completion, answer = row.prompt } end
    local kept = rows
    rows = support.write(folder .. "/turned.jsonl", table.concat(turned, "\n"))
    local other = loss()
    rows = kept
    assert.equal(other, loss("--prompt-key", "completion", "--completion-key", "prompt"))
    local template = loss("--template", "{prompt}: {completion}")
    assert.not_equal(completion, template)
    assert.equal(template, loss("--template", support.write(folder .. "/template.txt", "{prompt}: {completion}")))
  end)

  it("reports held-out loss before, during and after", function()
    local _, _, err, text = train("--steps", "4", "--eval", rows, "--eval-every", "2", "--lr", "0.01")
    assert.equal(2, select(2, err:gsub("held%-out loss", "")))
    local before, after = text:match "held out  ([%d.]+) %-> ([%d.]+)"
    assert.is_true(tonumber(after) < tonumber(before))
  end)

  it("counts the head's operations for the tokens that are trained on", function()
    local data, m = require "onn.data", require("onn.model").open(model)
    local head = 4 * m.sizes.vocabulary * m.sizes.width -- a token, there and back
    local share = data.supervised(assert(data.open(rows, require("onn.tokenizer").open(model), {})))
    m:close()
    local function flops(...)
      local _, out = support.run { "train", model, rows, "--out", folder .. "/planned", "--dry-run", "--json", ... }
      return json.decode(out).flops_per_token
    end
    assert.is_true(share > 0.2 and share < 0.9)
    assert.is_true(math.abs(flops("--loss", "all") - flops() - (1 - share) * head) < 1)
  end)

  it("charges no update with what a held-out loss reads", function()
    local function read(...)
      local bytes = 0
      for _, r in ipairs(train("--steps", "3", "--slots", "2", "--no-prefix-cache", ...)) do bytes = bytes + r.bytes_streamed end
      return bytes
    end
    local alone, beside = read(), read("--eval", rows, "--eval-every", "1")
    -- what lies in the slots after an evaluation is not what an update leaves there: some is read again
    assert.is_true(beside > 0 and beside < 1.5 * alone, ("%d bytes, %d without evaluations"):format(beside, alone))
  end)

  it("writes a TensorBoard event file and a trace", function()
    local board, trace = folder .. "/board", folder .. "/trace.json"
    train("--steps", "2", "--batch", "8", "--micro-batch", "8", "--tensorboard", board, "--profile", trace,
      "--layers", "last:2")
    local names = system.list(board)
    assert.equal(1, #names)
    local events = support.read(board .. "/" .. names[1])
    for _, tag in ipairs { "loss", "lr", "grad_norm", "tokens_per_s" } do
      assert.equal(2, select(2, events:gsub("\10." .. tag .. "\21", "")), tag)
    end
    local spans = {}
    for _, e in ipairs(assert(json.decode(support.read(trace))).traceEvents) do
      if e.ph == "X" then
        assert.is_true(e.dur >= 0 and e.ts >= 0)
        spans[e.cat .. " " .. e.name] = (spans[e.cat .. " " .. e.name] or 0) + 1
      end
    end
    assert.equal(2, spans["optimizer optimizer"])
    assert.equal(2, spans["forward model.embed_tokens"])
    for layer = 0, 2 do assert.equal(2, spans["forward model.layers." .. layer]) end
    assert.is_nil(spans["backward model.layers.0"]) -- below the lowest trained stage
    assert.equal(2, spans["backward model.layers.1"])
    assert.equal(2, spans["forward lm_head"])
    assert.is_nil(spans["backward lm_head"]) -- its gradient is made on its one way
  end)

  it("streams weights through as many slots as are asked for, to the same bits", function()
    local function trained(...)
      local log, out = train("--epochs", "2", "--batch", "8", "--layers", "last:1", "--lr", "0.01", ...)
      return losses(log), system.hash_file(out .. "/adapter_model.safetensors"), log, out
    end
    local want, adapter = trained()
    local scratch = folder .. "/scratch"
    for _, options in ipairs { { "--slots", "2" }, { "--slots", "1", "--chunk", "2" }, { "--slots", "3", "--no-prefetch" },
      { "--slots", "2", "--no-prefix-cache" }, { "--slots", "2", "--scratch", scratch }, { "--chunk", "2" } } do
      local got, hash, log, out = trained(unpack(options))
      local what = table.concat(options, " ")
      assert.same(want, got, what)
      assert.equal(adapter, hash, what)
      assert.equal(options[1] == "--slots", log[1].bytes_streamed > 0, what) -- a chunk alone streams nothing
      if options[1] == "--slots" then
        local first, second = 0, 0 -- epoch, of three updates
        for i = 1, 3 do first, second = first + log[i].bytes_streamed, second + log[3 + i].bytes_streamed end
        assert.equal(options[3] == "--no-prefix-cache", second > 0.7 * first, what)
      end
      assert.same({ "adapter_config.json", "adapter_model.safetensors" }, system.list(out))
    end
    assert.is_false(system.exists(scratch))
  end)

  it("shows reads beside the arithmetic in a trace", function()
    local file, spans, overlaps = folder .. "/streamed.json", {}, 0
    train("--steps", "3", "--slots", "2", "--profile", file)
    for _, e in ipairs(assert(json.decode(support.read(file))).traceEvents) do
      if e.ph == "X" then
        assert.is_true(e.dur >= 0 and e.ts >= 0)
        assert.equal(e.cat == "read" and 2 or 1, e.tid)
        spans[e.cat] = spans[e.cat] or {}
        table.insert(spans[e.cat], e)
      end
    end
    local bytes = 0
    for _, read in ipairs(spans.read) do
      bytes = bytes + read.args.bytes
      for _, e in ipairs(spans.forward) do if read.ts < e.ts + e.dur and e.ts < read.ts + read.dur then overlaps = overlaps + 1 end end
    end
    assert.is_true(#spans.read >= 3 and bytes > 0 and overlaps > 0)
    assert.is_true(#spans.backward > 0 and #spans.wait > 0)
  end)

  it("writes a whole model with --full, and trains only the layers that are named", function()
    local _, out = train("--steps", "2", "--full", "--lr", "0.01", "--layers", "1")
    local before, after = stores.open(model), stores.open(out)
    assert.same(before:names(), after:names())
    for _, name in ipairs(before:names()) do
      local moved = (before:read(name) - after:read(name)):abs():sum("all"):item() > 0
      assert.equal(name:find "layers.1." ~= nil, moved, name)
    end
    local status, _, err = support.run { "generate", out, "--prompt", "the", "--max-tokens", "2", "-q" }
    assert.equal(0, status, err)
  end)

  it("notices when something frozen moves or something trained does not", function()
    local changes, Model, Session = require "onn.changes", require "onn.model", require "onn.session"
    local m = assert(Model.open(model))
    assert(m:load())
    local session = assert(Session.new(m, { rank = 2, layers = { [1] = true }, total_steps = 1 }))
    local before = changes.record(m, session.params)
    for _, p in ipairs(session.params) do p.value:copy(p.value + 1) end
    assert.is_true(changes.check(before, changes.record(m, session.params)))
    m.stages[2].weights.norm1:fill(2)
    local ok, message = changes.check(before, changes.record(m, session.params))
    assert.is_nil(ok)
    assert.equal("'model.layers.0.input_layernorm.weight' is not trained and yet it changed", message)
    before = changes.record(m, session.params)
    ok, message = changes.check(before, before)
    assert.is_nil(ok)
    assert.equal("'model.layers.1' is trained and yet nothing in it changed", message)
    session:close()
    m:close()
  end)

  it("prints one JSON document, plans without training", function()
    local _, _, _, text = train("--steps", "2", "--json")
    local result = assert(json.decode(text))
    assert.equal(2, result.steps)
    assert.is_true(result.device_peak <= result.predicted_peak)
    local status, out = support.run { "train", model, rows, "--out", folder .. "/planned", "--dry-run", "--json" }
    assert.equal(0, status)
    assert.is_true(json.decode(out).peak > 0)
    assert.is_false(system.exists(folder .. "/planned"))
  end)

  it("tells updates with a known prefix from the others in its figures", function()
    local function figures(...) return assert(json.decode((select(4, train("--batch", "8", "--layers", "last:1", "--json", ...))))) end
    local once, often = figures("--epochs", "1"), figures("--epochs", "4")
    assert.is_nil(once.known_seconds)
    assert.is_nil(once.predicted_known_seconds)
    assert.is_true(often.predicted_known_seconds > 0 and often.predicted_known_seconds < often.predicted_seconds_per_step)
    assert.is_true(often.known_seconds > 0 and often.known_seconds < often.seconds)
  end)

  it("refuses in one line", function()
    refused(2, "betas: expected two numbers", "--betas", "0.9")
    refused(2, "did you mean '%-%-warmup'", "--warmpu", "3")
    refused(2, "'9' does not lie in 0%-2", "--layers", "9")
    refused(2, "is no range", "--layers", "nosuch")
    refused(2, "how many layers a heuristic keeps", "--count", "2")
    refused(1, "did you mean 'q_proj'", "--targets", "q_prj")
    refused(2, "held%-out data is needed", "--eval-every", "2")
    refused(2, "without an adapter", "--full", "--rank", "4")
    refused(2, "says that itself", "--adapter", fixtures .. "/all", "--rank", "4")
    refused(1, "nowhere", "--adapter", folder .. "/nowhere")
    refused(1, "there is no 'q'", "--prompt-key", "q")
    refused(1, "nowhere/x.log", "--log", folder .. "/nowhere/x.log")
    refused(1, "no {prompt}", "--template", "plain")
  end)
end)
