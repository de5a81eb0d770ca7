-- A tiny llama with a tokenizer of its own, and data for it: made anew by each spec that wants one, the same every time.
local arch = require "onn.arch"
local fresh = require "onn.fresh"
local json = require "onn.core.json"
local support = require "tests.support"
local system = require "onn.core.system"

local tiny = {}

local words = { "the", "red", "cat", "sees", "a", "small", "bird", "and", "one", "blue", "dog", "runs", "over", "green", "hills", "today" }

-- rows(n, seed): n pairs of prompt and completion of different lengths.
function tiny.rows(n, seed)
  local rows, state = {}, seed or 1
  local function word()
    state = (state * 1103515245 + 12345) % 2 ^ 31
    return words[math.floor(state / 65536) % #words + 1]
  end
  for i = 1, n do
    local prompt, completion = {}, {}
    for k = 1, 1 + i % 4 do prompt[k] = word() end
    for k = 1, 2 + i % 7 do completion[k] = word() end
    rows[i] = { prompt = table.concat(prompt, " "), completion = table.concat(completion, " ") }
  end
  return rows
end

-- data(path, n, seed) -> path of a JSONL file with these rows.
function tiny.data(path, n, seed)
  local lines = {}
  for i, row in ipairs(tiny.rows(n, seed)) do lines[i] = json.encode(row) end
  return support.write(path, table.concat(lines, "\n") .. "\n")
end

-- model(directory, changes) -> directory: a model of `changes` to the usual config. changes.seed: of the first weights.
function tiny.model(directory, changes)
  local config = { model_type = "llama", hidden_size = 32, intermediate_size = 64, num_hidden_layers = 3, num_attention_heads = 4,
    num_key_value_heads = 2, max_position_embeddings = 128, vocab_size = 300, tie_word_embeddings = true }
  for key, value in pairs(changes or {}) do config[key] = value end
  local seed = config.seed or 0
  config.seed = nil
  assert(system.mkdir_p(directory))
  local text = tiny.data(directory .. "/text.jsonl", 200, 7)
  assert(fresh.tokenizer(directory, config, { data = text, vocabulary = 300 }))
  if changes and changes.vocab_size then config.vocab_size = math.max(config.vocab_size, changes.vocab_size) end
  assert(arch.describe(config))
  assert(fresh.weights(directory, config, seed))
  os.remove(text)
  return directory
end

return tiny
