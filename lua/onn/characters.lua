-- A tokenizer whose tokens are single characters: the standard tokenizer.json of a WordLevel model that is given every character apart.
local json = require "onn.core.json"
local system = require "onn.core.system"

local characters = {}

local UNKNOWN = "<unk>"

-- The characters of texts, at most `most` tokens with the unknown one: the commonest, in the order of their bytes. Bytes that are no
-- UTF-8 are none.
function characters.vocabulary(texts, most)
  local counts, list = {}, {}
  for _, text in ipairs(texts) do
    for c in text:gmatch "[%z\1-\127\194-\244][\128-\191]*" do
      if not counts[c] then
        local sound = json.decode(json.encode(c)) == c
        counts[c], list[#list + 1] = 0, sound and c or nil
      end
      counts[c] = counts[c] + 1
    end
  end
  table.sort(list, function(a, b)
    if counts[a] ~= counts[b] then return counts[a] > counts[b] end
    return a < b
  end)
  for i = #list, most, -1 do list[i] = nil end
  table.sort(list)
  table.insert(list, 1, UNKNOWN)
  return list
end

-- Writes tokenizer.json and tokenizer_config.json of such a list into `directory`. Returns true, or nil, message, code.
function characters.write(directory, list)
  local vocabulary, null = {}, json.null
  for i, c in ipairs(list) do vocabulary[c] = i - 1 end
  local added = { { id = 0, content = UNKNOWN, single_word = false, lstrip = false, rstrip = false, normalized = false, special = true } }
  local ok, message, code = system.write_file(directory .. "/tokenizer.json", json.encode({
    version = "1.0", truncation = null, padding = null, added_tokens = added, normalizer = null, post_processor = null,
    pre_tokenizer = { type = "Split", pattern = { Regex = "[\\s\\S]" }, behavior = "Isolated", invert = false }, decoder = { type = "Fuse" },
    model = { type = "WordLevel", vocab = vocabulary, unk_token = UNKNOWN },
  }, { pretty = true }) .. "\n")
  if not ok then return nil, message, code end
  return system.write_file(directory .. "/tokenizer_config.json", json.encode({ tokenizer_class = "PreTrainedTokenizerFast",
    unk_token = UNKNOWN, clean_up_tokenization_spaces = false }, { pretty = true }) .. "\n")
end

return characters
