-- Training a byte-level BPE tokenizer: words are counted, then the most frequent pair of neighbours is merged again and again.
--   local trained = bpe_train.train({ text, ... }, { vocabulary = 1024 }); assert(bpe_train.write("model", trained))
-- Writes what the `tokenizers` library reads: tokenizer.json with ByteLevel pre-tokenizer and decoder, tokenizer_config.json.
local json = require "onn.core.json"
local nearest = require "onn.nearest"
local system = require "onn.core.system"

local bpe_train = { end_of_text = "<|endoftext|>" }

-- --- words -----------------------------------------------------------------------------------------------------------

-- The classes of ByteLevel's pattern by bytes: what is not ASCII counts as a letter. A boundary put elsewhere than the real
-- pattern would only make a merge useless, never a text unreadable.
local patterns = { "^'[stmd]", "^'re", "^'ve", "^'ll", "^ ?[%a\128-\255]+", "^ ?%d+", "^ ?[^%s%w\128-\255]+" }

local function count_words(text, counts)
  local find, at, size = string.find, 1, #text
  while at <= size do
    local stop
    for i = 1, #patterns do
      stop = select(2, find(text, patterns[i], at))
      if stop then break end
    end
    if not stop then
      stop = select(2, find(text, "^%s+", at))
      if stop < size and stop > at then stop = stop - 1 end -- the last space belongs to the word behind it
    end
    local word = text:sub(at, stop)
    counts[word] = (counts[word] or 0) + 1
    at = stop + 1
  end
end

-- Byte 0..255 -> the character that spells it: itself where it prints in Latin-1, else U+0100 and on.
local spelling, hidden = {}, 0
for byte = 0, 255 do
  local code = byte
  if not ((byte >= 33 and byte <= 126) or (byte >= 161 and byte ~= 173)) then code, hidden = 256 + hidden, hidden + 1 end
  spelling[byte] = code < 128 and string.char(code) or string.char(0xC0 + math.floor(code / 64), 0x80 + code % 64)
end

-- --- pairs in order of their counts ----------------------------------------------------------------------------------

local SHIFT = 2 ^ 20 -- a pair (a, b) is the number a * SHIFT + b

-- A heap of {count, pair}: the most frequent first, of equals the smaller pair. Entries go stale when a pair's count changes.
local function before(x, y) return x[1] > y[1] or (x[1] == y[1] and x[2] < y[2]) end

local function push(heap, entry)
  local i = #heap + 1
  while i > 1 do
    local parent = math.floor(i / 2)
    if not before(entry, heap[parent]) then break end
    heap[i], i = heap[parent], parent
  end
  heap[i] = entry
end

local function pop(heap)
  local top, last = heap[1], heap[#heap]
  heap[#heap] = nil
  local n, i = #heap, 1
  if n == 0 then return top end
  while true do
    local child = 2 * i
    if child > n then break end
    if child < n and before(heap[child + 1], heap[child]) then child = child + 1 end
    if not before(heap[child], last) then break end
    heap[i], i = heap[child], child
  end
  heap[i] = last
  return top
end

-- --- training --------------------------------------------------------------------------------------------------------

-- Adds `times` to the counts of the neighbours in word number `w`; `changed` collects the pairs.
local function count_pairs(ids, w, times, counts, places, changed)
  for i = 1, #ids - 1 do
    local pair = ids[i] * SHIFT + ids[i + 1]
    counts[pair] = (counts[pair] or 0) + times
    if not places[pair] then places[pair] = {} end
    places[pair][w] = true
    changed[pair] = true
  end
end

local function merged(ids, a, b, new)
  local out, i = {}, 1
  while i <= #ids do
    if ids[i] == a and ids[i + 1] == b then
      out[#out + 1], i = new, i + 2
    else
      out[#out + 1], i = ids[i], i + 1
    end
  end
  return out
end

-- texts: list of documents. options: vocabulary (most tokens, at least 256 + the special ones), specials (default: end_of_text).
-- Returns {tokens = list of spellings (id = position - 1), merges = list of {left, right}, specials}. The same texts give the same.
function bpe_train.train(texts, options)
  nearest.check(options, { "vocabulary", "specials", "progress" }, "bpe_train.train")
  local specials = options.specials or { bpe_train.end_of_text }
  local tokens, merges = {}, {}
  for _, special in ipairs(specials) do tokens[#tokens + 1] = special end
  local first = #tokens -- id of byte 0
  for byte = 0, 255 do tokens[#tokens + 1] = spelling[byte] end

  local frequency, list, words, counts, places, changed = {}, {}, {}, {}, {}, {}
  for _, text in ipairs(texts) do count_words(text, frequency) end
  for word in pairs(frequency) do list[#list + 1] = word end
  table.sort(list)
  for w, word in ipairs(list) do
    local ids = {}
    for i = 1, #word do ids[i] = first + word:byte(i) end
    words[w] = ids
    count_pairs(ids, w, frequency[word], counts, places, changed)
  end
  local heap = {}
  for pair in pairs(changed) do push(heap, { counts[pair], pair }) end

  while #tokens < options.vocabulary and #heap > 0 do
    local count, pair = unpack(pop(heap))
    if count == counts[pair] then -- else stale: the pair lies in the heap with its new count too
      if count < 2 then break end
      local a, b, new = math.floor(pair / SHIFT), pair % SHIFT, #tokens
      merges[#merges + 1] = { tokens[a + 1], tokens[b + 1] }
      tokens[#tokens + 1] = tokens[a + 1] .. tokens[b + 1]
      changed = {}
      for w in pairs(places[pair]) do
        local times = frequency[list[w]]
        count_pairs(words[w], w, -times, counts, places, changed)
        words[w] = merged(words[w], a, b, new)
        count_pairs(words[w], w, times, counts, places, changed)
      end
      places[pair] = nil
      for other in pairs(changed) do
        if counts[other] > 0 then push(heap, { counts[other], other }) else counts[other], places[other] = nil, nil end
      end
    end
  end
  return { tokens = tokens, merges = merges, specials = specials }
end

-- --- files -----------------------------------------------------------------------------------------------------------

-- The text of tokenizer.json.
function bpe_train.tokenizer_json(trained)
  local vocabulary, added = {}, {}
  for i, token in ipairs(trained.tokens) do vocabulary[token] = i - 1 end
  for i, token in ipairs(trained.specials) do
    added[i] = { id = i - 1, content = token, single_word = false, lstrip = false, rstrip = false, normalized = false, special = true }
  end
  local byte_level = { type = "ByteLevel", add_prefix_space = false, trim_offsets = true, use_regex = true }
  local null = json.null
  return json.encode({
    version = "1.0", truncation = null, padding = null, added_tokens = added, normalizer = null, pre_tokenizer = byte_level,
    post_processor = null, decoder = byte_level,
    model = { type = "BPE", dropout = null, unk_token = null, continuing_subword_prefix = null, end_of_word_suffix = null,
      fuse_unk = false, byte_fallback = false, ignore_merges = false, vocab = vocabulary, merges = trained.merges },
  }, { pretty = true }) .. "\n"
end

-- Writes tokenizer.json and tokenizer_config.json into `directory`. The first special token ends texts.
-- Returns true, or nil, message, code.
function bpe_train.write(directory, trained, positions)
  local last = trained.specials[1]
  local config = { tokenizer_class = "PreTrainedTokenizerFast", bos_token = last, eos_token = last, unk_token = last,
    pad_token = last, add_prefix_space = false, clean_up_tokenization_spaces = false, model_max_length = positions }
  local ok, message, code = system.write_file(directory .. "/tokenizer.json", bpe_train.tokenizer_json(trained))
  if not ok then return nil, message, code end
  return system.write_file(directory .. "/tokenizer_config.json", json.encode(config, { pretty = true }) .. "\n")
end

return bpe_train
