-- What train says to wrong MODEL and DATA, and to numbers that are not finite: one line, exit status 1, nothing written.
local json = require "onn.core.json"
local stores = require "onn.core.store"
local support = require "tests.support"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"
local tiny = require "tests.tiny"
local run, shell, write, read, quote = support.run, support.shell, support.write, support.read, support.quote

local folder, model
setup(function()
  folder = support.scratch()
  model = tiny.model(folder .. "/model")
end)
teardown(support.scratch_remove)

local function train(options, from, data)
  local words = { "train", from or model, data, "--out", folder .. "/out", "--threads", "1", "--seq-len", "16", "--rank", "2" }
  for _, word in ipairs(options) do words[#words + 1] = word end
  return run(words)
end

local function refused(data, pattern, options, from)
  local status, out, err = train(options or { "-q" }, from, data)
  assert.equal(1, status, err)
  assert.equal("", out)
  assert.matches("^onn: [^\n]+\n$", err)
  assert.matches(pattern, err)
  assert.is_false(system.exists(folder .. "/out"))
end

local function file(name, text) return write(folder .. "/" .. name, text) end
local function ids(name, values, labels, dtype)
  local set = { input_ids = tensors.from_table(values, dtype or "i64"), labels = labels and tensors.from_table(labels, dtype or "i64") }
  assert(stores.write(folder .. "/" .. name, set))
  return folder .. "/" .. name
end

describe("training data", function()
  it("that is wrong JSON is told by file and line", function()
    refused(file("a.jsonl", '{"text":"the red cat"}\n\n{"text":"the\n'), "a.jsonl:3: ")
    refused(file("a.jsonl", '{"text":"x"} trailing\n'), "a.jsonl:1: .*after the end")
    refused(file("a.jsonl", '{"text":"\255\254"}\n'), "a.jsonl:1: .*UTF%-8")
    refused(file("a.jsonl", '{"text":"one\0two"}\n'), "NUL")
    refused(file("a.jsonl", '{"text":"one"}\n{"text":"a\0b"}\n' .. ("\n"):rep(5000)), "NUL")
    refused(file("a.jsonl", ('{"text":"the red cat"}\n'):rep(500) .. '{"text":"a\0b"}\n'), "a.jsonl:501: .*NUL")
    refused(file("a.jsonl", '{"text":"a","text":"b"}\n'), "a.jsonl:1: .*twice")
    refused(file("a.json", '[{"text":"a"},]'), "a.json: ")
    refused(file("a.jsonl", '"' .. ("x"):rep(2 ^ 26 + 10)), "a.jsonl:1: a line of more than 64 MiB")
  end)

  it("without the keys says which were found and how to name them", function()
    refused(file("a.jsonl", '{"text":"the red cat sees"}\n{"ask":"x","reply":"y"}\n'),
      "a.jsonl:2: no known keys in this row %(ask, reply%).*"
      .. "%-%-prompt%-key and %-%-completion%-key")
    refused(folder .. "/a.jsonl", "a.jsonl:1: there is no 'ask'; the keys are text", { "-q", "--prompt-key", "ask", "--completion-key",
      "reply" })
    refused(file("a.jsonl", "3\n"), "a.jsonl:1: a row is a number; expected an object")
    refused(file("a.jsonl", '{"prompt":"x","completion":3}\n'), "'completion' is a number; expected text")
    refused(file("a.jsonl", '{"messages":[]}\n'), "a.jsonl:1: ")
  end)

  it("that holds nothing to train on says so", function()
    refused(file("a.jsonl", ""), "a.jsonl: the file is empty")
    refused(file("a.jsonl", "\n \n\r\n"), "a.jsonl: there are no rows")
    refused(file("a.json", "[]"), "a.json: there are no rows")
    refused(file("a.txt", "x"), "too short")
    refused(file("a.jsonl", json.encode { prompt = ("the red cat "):rep(50), completion = "x" }),
      "none of 1 rows has a token to train within 16 tokens")
    refused(ids("a.safetensors", { { 1, 2, 3 } }, { { -100, -100, -100 } }), "no token has a label")
  end)

  it("of token ids must fit the model", function()
    refused(ids("a.safetensors", { { 1, 2, 3 }, { 4, 300, 5 } }), "a.safetensors: token 2 of sample 2 is 300; the model has ids 0 to 299")
    refused(ids("a.safetensors", { { 1, 2, 3 } }, { { 1, 2, 70000 } }), "token 3 of sample 1 is 70000")
    refused(ids("a.safetensors", { { 1, -2, 3 } }), "id %-2")
    refused(ids("a.safetensors", { { 1, 2 ^ 40, 3 } }), "1099511627776")
    refused(ids("a.safetensors", { { 1, 2, 3 } }, { { 1, 2 } }), "shape differs")
    refused(ids("a.safetensors", { { 1, 2, 3 } }, nil, "f32"), "i32 or i64")
    assert(stores.write(folder .. "/a.safetensors", { x = tensors.from_table({ 1 }, "f32") }))
    refused(folder .. "/a.safetensors", "no tensor 'input_ids'")
    write(folder .. "/a.safetensors", "x")
    refused(folder .. "/a.safetensors", "a.safetensors: 1 bytes are too few")
  end)

  it("in another format is declined with the way out", function()
    refused(file("a.parquet", "PAR1" .. ("\0"):rep(100)), "Parquet file; convert it first: python3")
    refused(file("a.npy", "\147NUMPY\1\0" .. ("\0"):rep(100)), "NumPy array; convert")
    refused(file("a.jsonl", "PAR1" .. ("\0"):rep(100)), "Parquet")
    refused(file("a.jsonl.gz", "\31\139\8\0"), "compressed; unpack it first")
    refused(file("a.zip", "PK\3\4"), "zip archive; unpack")
    refused(file("a.png", "\137PNG\r\n\26\n\0\0\0\rIHDR"), "neither text nor JSON")
    refused(file("a.txt", "\137PNG\r\n\26\n\0\0\0\rIHDR"), "neither text nor JSON")
    refused(file("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "Git LFS pointer")
  end)

  it("that is no file says so, whatever its size", function()
    refused(folder, "is a directory; a file is expected")
    refused("/dev/null", "no regular file; a file is expected")
    refused("/dev/zero", "no regular file")
    refused(folder .. "/none.jsonl", "none.jsonl: No such file or directory")
    for _, name in ipairs { "huge.jsonl", "huge.txt", "huge.json", "huge", "huge.safetensors" } do
      assert.equal(0, (shell(("truncate -s 1T %s/%s"):format(quote(folder), name))))
      refused(folder .. "/" .. name, name)
    end
    write(folder .. "/huge.json", "[1" .. (" "):rep(5000))
    assert.equal(0, (shell(("truncate -s 1T %s/huge.json"):format(quote(folder)))))
    refused(folder .. "/huge.json", "huge.json: 1099511627776 bytes, at most %d+ are read")
  end)

  it("takes byte order marks, CRLF, blank lines, and long samples with a note", function()
    local data = file("a.jsonl", '\239\187\191{"text":"the red cat sees a dog"}\r\n\r\n{"text":"' .. ("the red cat "):rep(100) .. '"}\r\n')
    local status, _, err = train({ "--dry-run" }, nil, data)
    assert.equal(0, status, err)
    status, _, err = train({}, nil, data)
    assert.equal(0, status, err)
    assert.matches("1 samples were cut to 16 tokens", err)
    system.remove_tree(folder .. "/out")
    status, _, err = train({}, nil, ids("long.safetensors", { { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18 } }))
    assert.equal(0, status, err)
    assert.matches("1 samples were cut to 16 tokens", err)
    system.remove_tree(folder .. "/out")
  end)
end)

describe("a wrong MODEL", function()
  it("is told in one line", function()
    local data = tiny.data(folder .. "/rows.jsonl", 8)
    refused(data, "no safetensors file", { "-q" }, file("cat.png", "\137PNG\r\n\26\n\0\0\0\rIHDR"))
    refused(data, "not a regular file", { "-q" }, "/dev/null")
    refused(data, "no such model", { "-q" }, folder .. "/modle/x")
    refused(data, "did you mean '.*model'", { "-q" }, folder .. "/modle")
    refused(data, "neither model.safetensors", { "-q" }, folder)
    refused(data, "no safetensors file", { "-q" }, data)
    assert.equal(0, (shell(("cp -r %s %s/broken && rm %s/broken/tokenizer.json"):format(quote(model), quote(folder), quote(folder)))))
    refused(data, "there is no tokenizer.json", { "-q" }, folder .. "/broken")
    write(folder .. "/broken/config.json", (read(model .. "/config.json"):gsub('"hidden_size": %d+', '"hidden_size": 48')))
    refused(data, "has the shape %(%d+, 32%), expected %(%d+, 48%)", { "-q" }, folder .. "/broken")
  end)
end)

describe("numbers that are not finite", function()
  local data, poisoned
  setup(function()
    data = tiny.data(folder .. "/rows.jsonl", 40)
    -- token 299 has a NaN in its embedding: only sequences with it give a loss that is not finite
    poisoned = tiny.model(folder .. "/poisoned", { tie_word_embeddings = false })
    local store, values = assert(stores.open(poisoned)), {}
    for _, name in ipairs(store:names()) do values[name] = store:read(name) end
    store:close()
    local table_of = values["model.embed_tokens.weight"]:totable()
    table_of[#table_of][1] = 0 / 0
    values["model.embed_tokens.weight"] = tensors.from_table(table_of, "f32")
    assert(stores.write(poisoned .. "/model.safetensors", values))
  end)
  after_each(function() system.remove_tree(folder .. "/out") end)

  it("skip their update, counted and said; the others count", function()
    local last = #stores.open(poisoned):names() and 299
    local set = ids("some.safetensors", { { 1, 2, 3, 4 }, { 5, last, 6, 7 }, { 8, 9, 10, 11 }, { 12, 13, last, 14 } })
    local status, out, err = train({ "--batch", "1", "--no-shuffle", "--steps", "8", "--json", "--log", folder .. "/log" }, poisoned, set)
    assert.equal(0, status, err)
    assert.equal(4, json.decode(out).skipped)
    assert.matches("step 2 skipped: its loss or gradient is not finite", err)
    local skipped = {}
    for line in io.lines(folder .. "/log") do
      local row = json.decode(line)
      skipped[row.step] = row.skipped
      assert.equal(row.skipped, row.loss == json.null)
    end
    assert.same({ false, true, false, true, false, true, false, true }, skipped)
    -- a skipped update leaves no trace: the same run with an optimizer that never met them would give finite weights
    local store = assert(stores.open(folder .. "/out/adapter_model.safetensors"))
    for _, name in ipairs(store:names()) do
      for _, row in ipairs(store:read(name):totable()) do
        for _, x in ipairs(row) do assert.is_true(x == x and math.abs(x) < math.huge) end
      end
    end
    store:close()
  end)

  it("five in a row end the run, and what is not finite is not saved", function()
    local set = ids("all.safetensors", { { 1, 299, 3, 4 } })
    local status, _, err = train({ "--steps", "20", "--save-every", "10", "-q" }, poisoned, set)
    assert.equal(1, status)
    assert.matches("training stopped: 5 updates in a row had a loss or gradient that is not finite", err)
    assert.same({}, system.list(folder .. "/out"))
  end)

  it("in the weights are never saved", function()
    local status, _, err = train({ "--steps", "1", "--lr", "1e39", "--warmup", "0", "-q" }, nil, data)
    assert.equal(1, status, err)
    assert.matches("^onn: [^\n]*holds %d+ values that are not finite: it is not saved\n$", err)
    assert.same({}, system.list(folder .. "/out"))
    status, _, err = train({ "--steps", "9", "--lr", "1e39", "--warmup", "0", "--save-every", "1", "-q" }, nil, data)
    assert.equal(1, status, err)
    assert.same({}, system.list(folder .. "/out"))
  end)
end)

describe("a memory budget", function()
  it("that is too small is refused with the number that is needed, and one byte per number is enough to know", function()
    local data = tiny.data(folder .. "/rows.jsonl", 8)
    refused(data, "this run needs at least [%d.]+ %a+, the budget is 100 KB", { "-q", "--memory", "100KB" })
    refused(data, "the budget is 100 KB", { "-q", "--ram", "100KB" })
  end)
end)
