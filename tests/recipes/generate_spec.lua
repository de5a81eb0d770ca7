local json = require "onn.core.json"
local program = require "onn.core.program"
local support = require "tests.support"
local system = require "onn.core.system"
local tiny = require "tests.tiny"

describe("onn generate", function()
  local folder, model
  setup(function()
    folder = support.scratch()
    model = tiny.model(folder .. "/model")
    -- an adapter that has learnt one answer
    local rows = support.write(folder .. "/rows.jsonl", '{"prompt":"Hello","completion":"World"}\n')
    local status, _, err = support.run { "train", model, rows, "--out", folder .. "/adapter", "--steps", "60", "--lr", "0.01", "--schedule",
      "constant", "-q" }
    assert.equal(0, status, err)
  end)
  teardown(support.scratch_remove)

  local function generate(words, input)
    local list = { "generate", model, "--adapter", folder .. "/adapter", "--temperature", "0", "--max-tokens", "30" }
    for _, word in ipairs(words) do list[#list + 1] = word end
    local status, out, err = support.run(list, input)
    assert.equal(0, status, err)
    return out, err
  end

  it("prints the text and nothing else, from --prompt or standard input", function()
    assert.equal(" World\n", (generate { "--prompt", "Hello" }))
    assert.equal(" World\n", (generate({}, "Hello")))
    local out, err = generate { "--prompt", "Hello", "--stats" }
    assert.equal(" World\n", out)
    assert.matches("prompt: %d+ tokens, [%d.]+ tokens/s; generation: %d+ tokens, [%d.]+ tokens/s", err)
  end)

  it("prints JSON", function()
    local row = assert(json.decode((generate { "--prompt", "Hello", "--json" })))
    assert.equal("Hello", row.prompt)
    assert.equal(" World", row.text)
    assert.is_true(row.new_tokens > 1 and row.prompt_tokens > 0)
  end)

  it("decodes many prompts together, as each alone", function()
    local prompts = { "Hello", "the red cat", "a" }
    local file, alone = support.write(folder .. "/prompts.jsonl", '{"prompt":"Hello"}\n\n{"prompt":"the red cat"}\n{"prompt":"a"}\n'), {}
    for i, prompt in ipairs(prompts) do alone[i] = json.decode((generate { "--prompt", prompt, "--json" })).text end
    local rows = {}
    for line in generate({ "--prompts", file }):gmatch "[^\n]+" do rows[#rows + 1] = assert(json.decode(line)) end
    assert.equal(3, #rows)
    for i, row in ipairs(rows) do assert.same({ prompt = prompts[i], text = alone[i] }, row) end
    assert.equal(3, #assert(json.decode((generate { "--prompts", file, "--json" }))))
  end)

  it("stops at texts that span pieces, without showing them", function()
    assert.equal(" W\n", (generate { "--prompt", "Hello", "--stop", "orl" }))
    assert.equal(" \n", (generate { "--prompt", "Hello", "--stop", "rld", "--stop", "W" }))
    assert.equal(" World\n", (generate { "--prompt", "Hello", "--stop", "World!" }))
  end)

  it("draws the same for the same seed", function()
    local function drawn(seed) return (generate { "--prompt", "the", "--temperature", "1", "--top-k", "50", "--seed", seed }) end
    assert.equal(drawn "1", drawn "1")
    assert.not_equal(drawn "1", drawn "2")
    assert.equal(generate { "--prompt", "the" }, generate { "--prompt", "the", "--temperature", "3", "--top-k", "1" })
    assert.equal(generate { "--prompt", "the" }, generate { "--prompt", "the", "--temperature", "3", "--min-p", "1" })
  end)

  it("applies the chat template, with a system message", function()
    local config = json.decode(support.read(model .. "/tokenizer_config.json"))
    config.chat_template = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}\n{% endfor %}"
      .. "{% if add_generation_prompt %}a:{% endif %}"
    local chat = folder .. "/chat"
    os.execute(("cp -r %s %s"):format(model, chat))
    support.write(chat .. "/tokenizer_config.json", json.encode(config))
    local function text(...) return select(2, support.run { "generate", chat, "--temperature", "0", "--max-tokens", "5", "-q", ... }) end
    assert.equal(text("--prompt", "u:Hi\na:"), text("--prompt", "Hi", "--chat"))
    assert.equal(text("--prompt", "s:Be brief\nu:Hi\na:"), text("--prompt", "Hi", "--chat", "--system", "Be brief"))
    if system.exists "/usr/bin/script" then
      local generating = ("%s generate %s --chat --temperature 0 --max-tokens 5 -q"):format(support.onn, chat)
      local command = ("printf 'Hi\\nthe\\n\\004' | script -qec '%s' /dev/null"):format(generating)
      local _, shown = support.shell(command)
      assert.equal(3, select(2, shown:gsub("> ", "")), shown)
      assert.is_truthy(shown:gsub("\r", ""):find("> " .. text("--prompt", "u:Hi\na:"), 1, true), shown)
    end
  end)

  it("makes room for a conversation as it grows, in little more memory than its beginning has", function()
    if not system.exists "/usr/bin/script" then return end
    local long = tiny.model(folder .. "/long", { num_hidden_layers = 16, hidden_size = 64, intermediate_size = 256, max_position_embeddings = 2048 })
    local config = json.decode(support.read(long .. "/tokenizer_config.json"))
    config.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    support.write(long .. "/tokenizer_config.json", json.encode(config))
    local function answers(memory)
      local generating = ("%s generate %s --chat --temperature 0 --max-tokens 5 --threads 1 -q --memory %d"):format(support.onn, long,
        math.floor(memory))
      local status, shown = support.shell(("printf 'Hi\\n%s\\nHi\\n\\004' | script -qec '%s' /dev/null"):format(("the "):rep(700), generating))
      assert.equal(0, status, shown)
      return shown
    end
    local _, planned = support.run { "generate", long, "--chat", "--prompt", "Hi", "--max-tokens", "5", "--threads", "1", "--dry-run", "-q" }
    local least = assert(json.decode(planned))
    assert.is_nil(least.slots)
    local want = answers(1e9)
    assert.equal(4, select(2, want:gsub("> ", "")), want)
    assert.equal(want, answers(1.04 * least.peak))
  end)

  it("refuses in one line", function()
    local function refused(status, pattern, ...)
      local got, _, err = support.run { "generate", model, ... }
      assert.equal(status, got, err)
      assert.matches(pattern, err)
      assert.equal(1, select(2, err:gsub("\n", "")), err)
    end
    refused(1, "the prompt is empty", "--prompt", "")
    refused(1, "no chat template", "--prompt", "x", "--chat")
    refused(1, "nowhere", "--prompts", folder .. "/nowhere")
    refused(1, "bad.jsonl:2: expected {\"prompt\"", "--prompts", support.write(folder .. "/bad.jsonl", '{"prompt":"a"}\n{"text":"b"}\n'))
    refused(1, "nowhere", "--prompt", "x", "--adapter", folder .. "/nowhere")
    refused(2, "cannot go together", "--prompt", "x", "--prompts", "y")
    refused(2, "%-%-system belongs to %-%-chat", "--prompt", "x", "--system", "y")
    refused(2, "share from 0 to 1", "--prompt", "x", "--top-p", "2")
  end)

  it("refuses ids that the model does not have", function()
    local fixture, small = program.home .. "/tests/lua/fixtures/peft/model/", folder .. "/small"
    assert(system.mkdir_p(small))
    for _, name in ipairs { "config.json", "model.safetensors" } do support.write(small .. "/" .. name, support.read(fixture .. name)) end
    support.write(small .. "/tokenizer.json", support.read(model .. "/tokenizer.json"))
    local status, out, err = support.run { "generate", small, "--prompt", "Hello" }
    assert.equal(1, status, err)
    assert.equal("", out)
    assert.matches("^onn: token 1 of the prompt is %d+; the model has ids 0 to 47\n$", err)
  end)
end)
