local bpe_train = require "onn.bpe_train"
local support = require "tests.support"

-- The definition, without any bookkeeping: count all pairs, merge the most frequent (of equals the one with smaller ids), again.
local function slow(words, first, vocabulary)
  local merges, size = {}, first + 256
  while size < vocabulary do
    local counts, best, most = {}, nil, 1
    for _, word in ipairs(words) do
      for i = 1, #word.ids - 1 do
        local key = ("%08d %08d"):format(word.ids[i], word.ids[i + 1])
        counts[key] = (counts[key] or 0) + word.times
      end
    end
    for key, count in pairs(counts) do
      if count > most or (count == most and best and key < best) then best, most = key, count end
    end
    if not best then break end
    local a, b = best:match "(%d+) (%d+)"
    a, b = tonumber(a), tonumber(b)
    for _, word in ipairs(words) do
      local out, i = {}, 1
      while i <= #word.ids do
        if word.ids[i] == a and word.ids[i + 1] == b then out[#out + 1], i = size, i + 2 else out[#out + 1], i = word.ids[i], i + 1 end
      end
      word.ids = out
    end
    merges[#merges + 1], size = { a, b }, size + 1
  end
  return merges
end

describe("bpe_train", function()
  teardown(support.scratch_remove)

  it("merges what is most frequent first", function()
    local trained = bpe_train.train({ "low low low lower lowest" }, { vocabulary = 257 + 4 })
    assert.equal(261, #trained.tokens)
    assert.same({ { "l", "o" }, { "lo", "w" }, { "Ġ", "low" } }, { trained.merges[1], trained.merges[2], trained.merges[3] })
  end)

  it("stops where no pair comes twice", function()
    local trained = bpe_train.train({ "ab cd" }, { vocabulary = 1000 })
    assert.equal(0, #trained.merges)
    assert.equal(257, #trained.tokens)
  end)

  it("gives what counting anew after every merge gives", function()
    local state, text = 1, {}
    for i = 1, 3000 do
      state = state * 16807 % 2147483647
      text[i] = ("abcaa  "):sub(state % 7 + 1, state % 7 + 1)
    end
    text = table.concat(text)
    local counted, words = {}, {}
    -- letters and spaces only: a word is a run of letters with the space before it, or what remains of a run of spaces
    for spaces, letters in text:gmatch "( *)(%a*)" do
      if #spaces > 0 and #letters > 0 then spaces, letters = spaces:sub(2), " " .. letters end
      for _, word in ipairs { spaces, letters } do if word ~= "" then counted[word] = (counted[word] or 0) + 1 end end
    end
    for word, times in pairs(counted) do
      local ids = {}
      for i = 1, #word do ids[i] = 1 + word:byte(i) end
      words[#words + 1] = { ids = ids, times = times }
    end
    local trained = bpe_train.train({ text }, { vocabulary = 257 + 120 })
    local position = {}
    for i, token in ipairs(trained.tokens) do position[token] = i - 1 end
    local merges = {}
    for i, merge in ipairs(trained.merges) do merges[i] = { position[merge[1]], position[merge[2]] } end
    assert.same(slow(words, 1, 257 + 120), merges)
  end)

  it("writes a tokenizer that can be opened and loses nothing", function()
    local folder = support.scratch()
    local text = "The quick brown fox, isn't it?  The quick  brown\n\n fox. Grüße aus Köln, 日本 \240\159\166\138 12345"
    local trained = bpe_train.train({ text, text }, { vocabulary = 300 })
    assert.is_true(bpe_train.write(folder, trained, 64))
    local tokenizer = assert(require("onn.tokenizer").open(folder))
    assert.equal("<|endoftext|>", tokenizer.eos_token)
    assert.equal(0, tokenizer.eos_id)
    local ids = tokenizer:encode(text):totable()
    assert.is_true(#ids < #text)
    assert.equal(text, tokenizer:decode(ids))
    assert.same({ 0 }, tokenizer:encode("<|endoftext|>", { special = true }):totable())
    for byte = 0, 127 do assert.equal(string.char(byte), tokenizer:decode(tokenizer:encode(string.char(byte)):totable())) end
  end)

  it("gives the same tokenizer for the same texts", function()
    local texts = { "one two three two one", "two three four", "three" }
    local a, b = bpe_train.train(texts, { vocabulary = 280 }), bpe_train.train(texts, { vocabulary = 280 })
    assert.equal(bpe_train.tokenizer_json(a), bpe_train.tokenizer_json(b))
  end)
end)
