local corpora = require "onn.core.corpus"
local data = require "onn.data"
local tensors = require "onn.core.tensor"

-- One id per byte; "<end>" is 256, "<bos>" 257.
local tokenizer = { eos_token = "<end>", bos_token = "<bos>" }
function tokenizer:encode(text, options)
  local ids, i = {}, 1
  if options.bos and self.add_bos then ids[1] = 257 end
  while i <= #text do
    if text:sub(i, i + 4) == "<end>" then
      ids[#ids + 1], i = 256, i + 5
    else
      ids[#ids + 1], i = text:byte(i), i + 1
    end
  end
  return ids
end

tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<end>{% endfor %}"
  .. "{% if add_generation_prompt %}[assistant]{% endif %}"

local function text_of(ids)
  local parts = {}
  for i, id in ipairs(ids) do parts[i] = id == 256 and "<end>" or id == 257 and "<bos>" or id < 0 and "_" or string.char(id) end
  return table.concat(parts)
end

-- The sample as text, and its labels, "_" where a token does not count.
local function shown(set, i) return text_of(set.corpus:ids(i)), text_of(set.corpus:labels(i)) end

local files = {}
local function file(name, content)
  local folder = os.tmpname()
  os.remove(folder)
  local path = folder .. name
  local handle = assert(io.open(path, "wb"))
  handle:write(content)
  handle:close()
  files[#files + 1] = path
  return path
end

local function list(t) return table.concat(t:totable(), " ") end

describe("data", function()
  teardown(function() for _, path in ipairs(files) do os.remove(path) end end)

  it("knows the rows of the field", function()
    local rows = {
      { { text = "ab" }, "ab<end>", "ab<end>" },
      { { prompt = "p", completion = "c" }, "p c<end>", "_ c<end>" },
      { { input = "p", output = "c" }, "p c<end>", "_ c<end>" },
      { { instruction = "i", input = "x", output = "o" }, "i\n\nx o<end>", "____ o<end>" },
      { { instruction = "i", input = "", output = "o" }, "i o<end>", "_ o<end>" },
      { { question = "q", answer = "a" }, "q a<end>", "_ a<end>" },
      { { prompt = "p\n", completion = "c" }, "p\nc<end>", "__c<end>" },
      { { prompt = "p", completion = "c<end>" }, "p c<end>", "_ c<end>" },
      { { conversations = { { from = "human", value = "h" }, { from = "gpt", value = "g" } } },
        "[user]h<end>[assistant]g<end>", ("_"):rep(19) .. "g<end>" },
    }
    for _, case in ipairs(rows) do
      local set = assert(data.open({ case[1] }, tokenizer))
      local ids, labels = shown(set, 1)
      assert.are.equal(case[2], ids)
      assert.are.equal(case[3], labels)
    end
  end)

  it("trains every turn of the assistant, or everything", function()
    local row = { messages = { { role = "user", content = "a" }, { role = "assistant", content = "b" },
      { role = "user", content = "c" }, { role = "assistant", content = "d" } } }
    local set = assert(data.open({ row }, tokenizer))
    local ids, labels = shown(set, 1)
    assert.are.equal("[user]a<end>[assistant]b<end>[user]c<end>[assistant]d<end>", ids)
    assert.are.equal(("_"):rep(19) .. "b<end>" .. ("_"):rep(19) .. "d<end>", labels)
    set = assert(data.open({ row }, tokenizer, { loss = "all" }))
    ids, labels = shown(set, 1)
    assert.are.equal(ids, labels)
  end)

  it("falls back to the last turn where the template rewrites earlier ones", function()
    local forgetful = setmetatable({ chat_template = "{% for m in messages %}[{{ m.role }}]"
      .. "{% if loop.last and m.role == 'assistant' %}!{% endif %}{{ m.content }}{% endfor %}"
      .. "{% if add_generation_prompt %}[assistant]{% endif %}" }, { __index = tokenizer })
    local set = assert(data.open({ { messages = { { role = "user", content = "a" }, { role = "assistant", content = "b" },
      { role = "user", content = "c" }, { role = "assistant", content = "d" } } } }, forgetful))
    assert.are.equal(1, set.only_last)
    local ids, labels = shown(set, 1)
    assert.are.equal("[user]a[assistant]b[user]c[assistant]!d", ids)
    assert.are.equal(("_"):rep(37) .. "!d", labels)
  end)

  it("takes templates with fields, and Jinja", function()
    local row = { prompt = "p{completion}", completion = "c" }
    local set = assert(data.open({ row }, tokenizer, { template = "Q: {prompt}\nA: {completion}." }))
    local ids, labels = shown(set, 1)
    assert.are.equal("Q: p{completion}\nA: c.<end>", ids)
    assert.are.equal(("_"):rep(#"Q: p{completion}\nA: ") .. "c.<end>", labels)
    set = assert(data.open({ row }, tokenizer, { template = "{% for m in messages %}<{{ m.content }}>{% endfor %}", loss = "all" }))
    assert.are.equal("<p{completion}><c>", (shown(set, 1)))
    local _, message = data.open({ row }, tokenizer, { template = "no-such-file" })
    assert.is_truthy(message:find("no-such-file", 1, true))
  end)

  it("renames keys, and names what is missing", function()
    local row = { a = "1", b = "2" }
    assert.are.equal("1 2<end>", (shown(assert(data.open({ row }, tokenizer, { prompt_key = "a", completion_key = "b" })), 1)))
    local _, message, code = data.open({ row }, tokenizer)
    assert.is_truthy(message:find("row 1: no known keys in this row (a, b)", 1, true))
    assert.are.equal("format", code)
    _, message = data.open({ row }, tokenizer, { prompt_key = "a", completion_key = "c" })
    assert.are.equal("row 1: there is no 'c'; the keys are a, b", message)
    _, message = data.open({ { prompt = "a", completion = 3 } }, tokenizer)
    assert.are.equal("row 1: 'completion' is a number; expected text", message)
  end)

  it("reads JSON lines, arrays and text", function()
    local lines = file(".jsonl", '\239\187\191{"text": "one"}\r\n\n{"prompt": "a", "completion": "b"}')
    local set = assert(data.open(lines, tokenizer))
    assert.are.equal(2, data.size(set))
    assert.are.equal("one<end>", (shown(set, 1)))
    set = assert(data.open(file(".json", '[{"text": "one"}, {"text": "two"}]'), tokenizer))
    assert.are.equal("two<end>", (shown(set, 2)))
    set = assert(data.open(file(".txt", "abcdefghijk"), tokenizer, { seq_len = 4 }))
    assert.are.equal(3, data.size(set))
    assert.are.equal("ijk", (shown(set, 3)))
    assert.are.equal(11, set.supervised_bytes)
  end)

  it("says which line is wrong", function()
    local path = file(".jsonl", '{"text": "one"}\n{"text": 5}\n')
    local _, message, code = data.open(path, tokenizer)
    assert.are.equal(path .. ":2: 'text' is a number; expected text", message)
    assert.are.equal("format", code)
    _, message = data.open(file(".jsonl", '{"text": "one"\n'), tokenizer)
    assert.is_truthy(message:find ":1: ")
    _, _, code = data.open("/no/such/file.jsonl", tokenizer)
    assert.are.equal("io", code)
    _, message, code = data.open(file(".parquet", "PAR1xxxx"), tokenizer)
    assert.is_truthy(message:find("to_json", 1, true))
    assert.are.equal("unsupported", code)
    for _, content in ipairs { "", "[]", "\n\n" } do
      _, message, code = data.open(file(".jsonl", content), tokenizer)
      assert.are.equal("format", code, message)
    end
  end)

  it("counts what is cut and what is left out", function()
    local set = assert(data.open({ { prompt = "abc", completion = "defghij" }, { prompt = ("x"):rep(20), completion = "y" },
      { text = "z" } }, tokenizer, { seq_len = 8 }))
    assert.are.equal(2, data.size(set))
    assert.are.equal(1, set.truncated)
    assert.are.equal(1, set.skipped)
    local ids, labels = shown(set, 1)
    assert.are.equal("abc defg", ids)
    assert.are.equal("___ defg", labels)
    assert.are.equal(2, #data.notes(set))
    local _, message = data.open({ { prompt = ("x"):rep(20), completion = "y" } }, tokenizer, { seq_len = 8 })
    assert.is_truthy(message:find("none of 1 rows", 1, true))
  end)

  it("hashes content", function()
    local function hash(text, loss)
      return data.hash(assert(data.open({ { prompt = "a", completion = text } }, tokenizer, { loss = loss })))
    end
    assert.are.equal(hash "b", hash "b")
    assert.are_not.equal(hash "b", hash "c")
    assert.are_not.equal(hash "b", hash("b", "all"))
    assert.is_truthy(hash("b"):find "^%x+$")
  end)

  it("takes tensors", function()
    local corpus = corpora.new()
    assert.are.equal(3, corpus:add_tensor(tensors.from_table({ { 1, 2, 3 }, { 4, 5, 6 } }, "i32"),
      tensors.from_table({ { -100, 2, 3 }, { -100, -100, 6 } }, "i32")))
    assert.are.equal("-100 -100 6", table.concat(corpus:labels(2), " "))
    assert.has_error(function() corpus:add_tensor(tensors.from_table({ { -1, 2 } }, "i32")) end)
  end)
end)

describe("batches", function()
  local rows = {}
  for i = 1, 23 do rows[i] = { text = ("%c"):format(96 + i):rep(1 + (i * 7) % 11) } end
  local set = assert(data.open(rows, tokenizer, { seq_len = 16 }))

  local function collect(order)
    local seen = {}
    for update, cursor in data.batches(set, order) do
      local parts = {}
      for i, b in ipairs(update) do
        parts[i] = list(b.ids) .. "|" .. list(b.labels) .. "|" .. list(b.positions) .. "|" .. list(b.starts) .. "|" .. list(b.rows)
      end
      seen[cursor] = table.concat(parts, "\n")
    end
    return seen
  end

  it("shifts labels inside each sequence", function()
    local one = assert(data.open({ { prompt = "ab", completion = "c" }, { text = "xy" } }, tokenizer, { seq_len = 16 }))
    local update = data.batches(one, { batch = 2, shuffle = false, seq_len = 16 })()
    local b = update[1]
    assert.are.equal("97 98 32 99 256 120 121 256", list(b.ids))
    assert.are.equal("-100 32 99 256 -100 121 256 -100", list(b.labels))
    assert.are.equal("0 1 2 3 4 0 1 2", list(b.positions))
    assert.are.equal("0 5 8", list(b.starts))
    assert.are.equal("0 1 2 3 4 5 6 7", list(b.rows))
    assert.are.same({ 8, 2, 5, 5 }, { b.tokens, b.sequences, b.longest, b.supervised })
  end)

  it("knows the number of updates, and holds each sample once", function()
    for _, pack in ipairs { false, "best-fit" } do
      local order = { batch = 4, micro_batch = 3, seq_len = 16, pack = pack, seed = 3, epoch = 1 }
      local updates, seen, count = 0, {}, 0
      for update in data.batches(set, order) do
        updates = updates + 1
        for _, b in ipairs(update) do
          for _, number in ipairs(b.rows:totable()) do
            assert.is_nil(seen[number])
            seen[number], count = true, count + 1
          end
        end
      end
      assert.are.equal(data.updates(set, order), updates)
      assert.are.equal(set.tokens, count)
    end
  end)

  it("repeats an epoch exactly, differs between epochs and seeds, and keeps the file's order if asked", function()
    local first = collect { batch = 4, seq_len = 16, seed = 1, epoch = 0 }
    assert.are.same(first, collect { batch = 4, seq_len = 16, seed = 1, epoch = 0 })
    assert.are_not.same(first, collect { batch = 4, seq_len = 16, seed = 1, epoch = 1 })
    assert.are_not.same(first, collect { batch = 4, seq_len = 16, seed = 2, epoch = 0 })
    local plain = collect { batch = 23, seq_len = 16, shuffle = false }
    assert.is_truthy(plain[1]:find("0 1 2 3", 1, true))
  end)

  it("goes on from a cursor as if never stopped", function()
    for _, pack in ipairs { false, "best-fit", "stream" } do
      local order = { batch = 3, micro_batch = 2, seq_len = 16, pack = pack, seed = 9, epoch = 2 }
      local whole = collect(order)
      order.cursor = 1
      local rest = collect(order)
      assert.is_nil(rest[1])
      for cursor, update in pairs(rest) do assert.are.equal(whole[cursor], update) end
    end
  end)

  it("is not confused by a second loop over the same rows", function()
    local order = { batch = 2, seq_len = 16, seed = 5, epoch = 0 }
    local whole, seen = collect(order), {}
    for update, cursor in data.batches(set, order) do
      collect { batch = 2, seq_len = 16, shuffle = false }
      local b = update[1]
      seen[cursor] = list(b.ids) .. "|" .. list(b.labels) .. "|" .. list(b.positions) .. "|" .. list(b.starts) .. "|" .. list(b.rows)
    end
    assert.are.same(whole, seen)
  end)

  it("packs best-fit: no row is longer than seq_len, and few places stay empty", function()
    local info = data.rows(set, { pack = "best-fit", seq_len = 16 }):info()
    assert.are.equal(23, info.sequences)
    assert.are.equal(0, info.truncated)
    assert.is_true(info.rows <= math.ceil(set.tokens / 16) + 1)
    for update in data.batches(set, { batch = 1, pack = "best-fit", seq_len = 16 }) do assert.is_true(update[1].tokens <= 16) end
  end)

  it("gives the same labels packed or not", function()
    local function labels(pack)
      local found = {}
      for update in data.batches(set, { batch = 5, pack = pack, seq_len = 16 }) do
        local numbers, values = update[1].rows:totable(), update[1].labels:totable()
        for i, number in ipairs(numbers) do found[number] = values[i] end
      end
      return found
    end
    assert.are.same(labels(false), labels "best-fit")
  end)

  it("cuts a stream into rows of exactly seq_len", function()
    local rows_of = data.rows(set, { pack = "stream", seq_len = 16 })
    local info = rows_of:info()
    assert.are.equal(math.floor(set.tokens / 16), info.rows)
    assert.are.equal(set.tokens - 16 * info.rows, info.dropped)
    for update in data.batches(set, { batch = 2, pack = "stream", seq_len = 16 }) do
      local b = update[1]
      assert.are.equal(0, b.tokens % 16)
      assert.are.equal(16, b.longest)
      assert.are.equal(b.tokens - b.sequences, b.supervised)
    end
  end)
end)
