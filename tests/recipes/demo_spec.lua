local json = require "onn.core.json"
local program = require "onn.core.program"
local support = require "tests.support"
local system = require "onn.core.system"

describe("the demo's corpus", function()
  local corpus = dofile(program.home .. "/recipes/demo/corpus.lua")
  local made = corpus.make(7, 300)

  it("follows from its seed", function()
    assert.same(made, corpus.make(7, 300))
    assert.not_same(made.documents, corpus.make(8, 300).documents)
  end)

  it("asks about other people in the held-out questions", function()
    assert.equal(180, #made.train)
    assert.equal(60, #made.held_out)
    local asked = {}
    for _, row in ipairs(made.train) do asked[row.prompt:match "does (%u%l+)%W"] = true end
    for _, row in ipairs(made.held_out) do assert.is_nil(asked[row.prompt:match "does (%u%l+)%W"], row.prompt) end
  end)

  it("fills every template", function()
    for _, text in ipairs(made.documents) do assert.is_nil(text:find "[{}]", text) end
    for _, row in ipairs(made.train) do assert.is_nil((row.prompt .. row.completion):find "[{}]") end
  end)
end)

describe("onn demo", function()
  local folder
  setup(function() folder = support.scratch() end)
  teardown(support.scratch_remove)

  local short = " demo --steps 12 --stories 96 --epochs 1 --budget 2s "
  local function demo(words, env)
    return support.shell(("env TERM=dumb XDG_CACHE_HOME=%s %s %s%s%s"):format(support.quote(folder .. "/cache"), env or "",
      support.quote(support.onn), short, words))
  end

  it("goes the whole way in plain lines, and finds its model again", function()
    local status, out, err = demo ""
    assert.equal(0, status, err)
    for _, title in ipairs { "A world to learn", "Pretraining", "The machine", "The model", "Settings for this machine and this model",
      "Fine%-tuning", "Before and after", "Summary" } do assert.matches("\n== %d%. " .. title .. " =+\n", out) end
    assert.is_nil((out .. err):find "[\27\r]")
    assert.matches("right answers  %d+ %% %-> %d+ %% of 60 questions kept back", out)
    local home = out:match "kept in +(%S+):"
    assert.equal(folder .. "/cache/onn/", home:match "^.*/onn/")
    for _, name in ipairs { "model/model.safetensors", "model/universal_config.json", "adapter/adapter_model.safetensors" } do
      assert.is_true(system.exists(home .. "/" .. name), name)
    end
    local first = system.hash_file(home .. "/model/model.safetensors")
    status, out, err = demo "--json"
    assert.equal(0, status, err)
    assert.equal("", err)
    local result = assert(json.decode(out))
    assert.equal(home, result.home)
    assert.equal(60, result.questions)
    assert.equal(first, system.hash_file(home .. "/model/model.safetensors"))
  end)

  it("goes elsewhere where the home cannot be written, and leaves nothing half-made when it is interrupted", function()
    local there = folder .. "/elsewhere"
    assert(system.mkdir_p(there))
    local function elsewhere(words)
      return ("env -u XDG_CACHE_HOME HOME=/proc/none TMPDIR=%s setsid %s demo --stories 96 %s"):format(there, support.quote(support.onn), words)
    end
    local status, out, err = support.shell(elsewhere "--dry-run")
    assert.same({ 0, "" }, { status, out })
    assert.matches("would pretrain for 1000 updates", err)
    local logs = there .. "/onn-*/pretrain.log"
    status, out, err = support.shell(("%s & pid=$!; while ! grep -q step %s 2>/dev/null && kill -0 $pid; do sleep 0.1; done; "
      .. "kill -s INT -- -$pid; wait $pid"):format(elsewhere "--steps 100000", logs))
    assert.equal(130, status, err)
    assert.matches("^/proc/none[^\n]+: everything goes to a temporary folder", err)
    assert.matches("== 2%. Pretraining", out)
    assert.matches("is removed; the next run begins it again\n$", err)
    local _, left = support.shell(("ls -d %s/onn-*/*"):format(there))
    assert.matches("/stories%.jsonl\n", left)
    for _, name in ipairs { "model", "new", "new%.part" } do assert.is_nil(left:find("/" .. name .. "\n"), left) end
  end)
end)
