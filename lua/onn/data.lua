-- Training data: files or tables -> tokens with labels -> rows -> batches.
--   local set = assert(data.open("questions.jsonl", tokenizer, { seq_len = 512 }))
--   for update, cursor in data.batches(set, { batch = 8, micro_batch = 2, seq_len = 512, seed = 0, epoch = 0 }) do ... end
local corpora = require "onn.core.corpus"
local formats = require "onn.data.formats"
local signals = require "onn.core.signals"
local tensors = require "onn.core.tensor"
local Template = require "onn.data.template"

local data = {}

-- Tokens of a prepared example go into the corpus; spans of bytes become ranges of tokens. A token that crosses a span's border
-- belongs to what follows.
local function add_example(set, tokenizer, prepared, limit)
  local text, spans = prepared.text, prepared.spans
  local options = { special = true, bos = prepared.bos }
  local ids = tokenizer:encode(text, options)
  local n = corpora.count(ids)
  if n < 2 then return false end
  local gaps, covered, bytes = {}, 0, 0
  local function token_at(byte)
    if byte == 0 then return 0 end
    if byte >= #text then return n end
    return corpora.common_prefix(tokenizer:encode(text:sub(1, byte), options), ids)
  end
  for i = 1, #spans, 2 do
    local first = token_at(spans[i])
    if first > covered then gaps[#gaps + 1], gaps[#gaps + 2] = covered, first end
    covered = token_at(spans[i + 1])
    bytes = bytes + spans[i + 1] - spans[i]
  end
  if covered < n then gaps[#gaps + 1], gaps[#gaps + 2] = covered, n end
  local supervised = set.corpus:add(ids, 0, gaps, limit)
  if supervised == 0 then
    set.corpus:remove_last()
    return false
  end
  local kept = math.min(n, limit or n)
  if kept < n then set.truncated = set.truncated + 1 end
  set.supervised_bytes = set.supervised_bytes + bytes * kept / n
  return true
end

local function add_rows(set, source, tokenizer, opt, limit)
  local template, message, code = Template.new(opt, tokenizer)
  if not template then return nil, message, code end
  local function each(row)
    local example, prepared, wrong
    example, wrong = formats.example(row, opt)
    if not example then return nil, wrong end
    prepared, wrong = template:apply(example)
    if not prepared then return nil, wrong end
    if not add_example(set, tokenizer, prepared, limit) then set.skipped = set.skipped + 1 end
    return true
  end
  if type(source) == "table" then
    for i, row in ipairs(source) do
      local ok, wrong = each(row)
      if not ok then return nil, ("row %d: %s"):format(i, wrong), "format" end
    end
  else
    local ok
    ok, message, code = formats.rows(source, set.kind, each)
    if not ok then return nil, message, code end
  end
  set.only_last = template.only_last
  return true
end

-- {text, label} rows: each a sample between special tokens, its class the label of its first token.
local function add_labelled(set, source, tokenizer, opt)
  local framed = require "onn.framed"
  local function each(row)
    local id, wrong = formats.class(row, opt.classes)
    if not id then return nil, wrong end
    local ids, cut = framed.ids(tokenizer, row.text, opt.seq_len)
    local labels = { id }
    for t = 2, #ids do labels[t] = -100 end
    if cut then set.truncated = set.truncated + 1 end
    set.corpus:add_tensor(tensors.from_table({ ids }, "i32"), tensors.from_table({ labels }, "i32"))
    return true
  end
  if type(source) ~= "table" then return formats.rows(source, set.kind, each) end
  for i, row in ipairs(source) do
    local ok, wrong = each(row)
    if not ok then return nil, ("row %d: %s"):format(i, wrong), "format" end
  end
  return true
end

local function add_text(set, path, tokenizer, opt)
  if opt.loss == "completion" then return nil, path .. ": plain text has no completion; use --loss all", "argument" end
  local content, message, code = formats.read_all(path)
  if not content then return nil, message, code end
  local ids = tokenizer:encode(content, { special = true, bos = true })
  if corpora.count(ids) < 2 then return nil, path .. ": too short to train on", "format" end
  if opt.pack == "stream" then
    set.corpus:add(ids)
  else
    set.corpus:add_windows(ids, opt.seq_len)
  end
  set.supervised_bytes = #content
  return true
end

-- input_ids (N, T) and optionally labels of the same shape, i32 or i64.
local function add_tensors(set, path, opt)
  local stores = require "onn.core.store"
  local store, message, code = stores.open(path)
  if not store then return nil, message, code end
  if not store:info "input_ids" then return nil, path .. ": there is no tensor 'input_ids'", "format" end
  local input_ids, labels
  input_ids, message, code = store:read "input_ids"
  if not input_ids then return nil, message, code end
  if store:info "labels" then
    labels, message, code = store:read "labels"
    if not labels then return nil, message, code end
  end
  local ok, wrong = pcall(set.corpus.add_tensor, set.corpus, input_ids, labels)
  if not ok then return nil, path .. ": " .. tostring(wrong), "format" end
  if input_ids:size(2) > opt.seq_len then set.truncated = input_ids:size(1) end
  set.supervised_bytes = nil
  return true
end

-- open(source, tokenizer, opt): source is a path (JSONL, a JSON array, text, safetensors with input_ids) or a list of rows. The
-- tokenizer may be nil for safetensors. opt: seq_len (512), prompt_key, completion_key, template, loss, pack, vocab_size (ids from there
-- on are refused), own (labels are their own tokens', as a masked-language model wants them), classes ({[name] = number} of a classifier
-- of sequences: rows are {text, label}). model: whose data it is; one that is not made of tokens reads it itself (net.open_data).
-- Returns a set {corpus, kind, tokens, samples, supervised, supervised_bytes, truncated, skipped}; or nil, message, code.
function data.open(source, tokenizer, opt, model)
  opt = opt or {}
  if model and model.net.open_data then return model.net.open_data(model, source, opt) end
  local settings = { seq_len = opt.seq_len or 512, pack = opt.pack, prompt_key = opt.prompt_key, completion_key = opt.completion_key,
    template = opt.template, loss = opt.loss, classes = opt.classes }
  local set = { corpus = corpora.new(opt.own or opt.classes ~= nil), path = type(source) == "string" and source or "the rows given", truncated = 0, skipped = 0,
    only_last = 0, supervised_bytes = 0, seq_len = settings.seq_len, plans = {}, ordered = {} }
  local message, code
  if type(source) == "table" then
    set.kind = "table"
  else
    set.kind, message, code = formats.kind(source)
    if not set.kind then return nil, message, code end
  end
  if set.kind ~= "safetensors" and not tokenizer then return nil, set.path .. ": text needs the model's tokenizer", "argument" end
  local ok
  if opt.classes and (set.kind == "safetensors" or set.kind == "text") then
    return nil, set.path .. ": a classifier is trained on rows with text and label", "argument"
  elseif opt.own and not opt.classes and set.kind ~= "safetensors" then
    return nil, set.path .. ": this model does not predict the next token; it is trained on input_ids and labels in a safetensors file", "argument"
  end
  if opt.classes then
    ok, message, code = add_labelled(set, source, tokenizer, settings)
  elseif set.kind == "safetensors" then
    ok, message, code = add_tensors(set, source, settings)
  elseif set.kind == "text" then
    ok, message, code = add_text(set, source, tokenizer, settings)
  else
    ok, message, code = add_rows(set, source, tokenizer, settings, settings.pack ~= "stream" and settings.seq_len or nil)
  end
  if not ok then return nil, message, code end
  if #set.corpus == 0 then
    return nil, set.skipped > 0 and ("%s: none of %d rows has a token to train within %d tokens"):format(set.path, set.skipped,
      set.seq_len) or set.path .. ": there are no rows", "format"
  end
  if set.corpus:supervised() == 0 then return nil, set.path .. ": no token has a label (all are -100): there is nothing to train",
    "format" end
  if opt.vocab_size then
    local id, sample, place = set.corpus:beyond(opt.vocab_size)
    if id then
      return nil, ("%s: token %d of sample %d is %d; the model has ids 0 to %d"):format(set.path, place, sample, id,
        opt.vocab_size - 1), "format"
    end
  end
  set.samples, set.tokens, set.supervised = #set.corpus, set.corpus:tokens(), set.corpus:supervised()
  return set
end

function data.size(set) return #set.corpus end

-- Of the tokens that can have a label (all but the first of each sample), the share that has one: what the head works on.
function data.supervised(set) return set.supervised / (set.tokens - set.samples) end

-- notes(set, order): lines that say what is left out of training; order: see batches().
function data.notes(set, order)
  local notes = {}
  local function note(n, text)
    if n > 0 then notes[#notes + 1] = text:format(n) end
  end
  local rows = data.rows(set, order or {}):info()
  note(math.max(set.truncated, rows.truncated), "%d samples were cut to " .. set.seq_len .. " tokens")
  note(set.skipped, "%d rows were left out: nothing to train within " .. set.seq_len .. " tokens")
  note(set.only_last, "%d conversations are trained on their last turn only: the chat template rewrites earlier ones")
  return notes
end

-- hash(set): of all ids and labels, as 16 hexadecimal digits.
function data.hash(set) return set.corpus:hash() end

local function packing_of(pack)
  if not pack or pack == "none" then return "none" end
  if pack == true or pack == "" then return "best-fit" end
  return pack
end

-- rows(set, order): the set's rows for order.pack ("best-fit", "stream", or nil) and order.seq_len. The same in every epoch.
function data.rows(set, order)
  local packing, seq_len = packing_of(order.pack), order.seq_len or set.seq_len
  local key = packing .. seq_len
  set.plans[key] = set.plans[key] or set.corpus:rows(packing, seq_len)
  return set.plans[key]
end

-- updates(set, order): updates of one epoch.
function data.updates(set, order)
  local rows, size = #data.rows(set, order), order.batch or 8
  if order.carried then return math.floor(rows / math.min(size, rows)) end
  return math.ceil(rows / size)
end

-- batches(set, order): iterates over an epoch's updates from order.cursor (0) on. Each turn gives the update, a list of
-- micro-batches (tensors, see onn.batch) of order.micro_batch rows, and the cursor behind it: with {epoch, cursor} kept, the
-- rest of an epoch is the same bit by bit. order: batch (8 rows), micro_batch (batch), seq_len, pack, shuffle (true), seed, epoch; carried: the
-- text is cut into as many streams as an update has rows, and each update goes on in all of them; what makes no whole update is left out.
function data.batches(set, order)
  local rows, size = data.rows(set, order), order.batch or 8
  local micro, epoch = order.micro_batch or size, order.epoch or 0
  local n, cursor = #rows, order.cursor or 0
  local wanted = order.shuffle == false and "as planned" or ("%d/%d"):format(order.seed or 0, epoch)
  if order.carried then
    size = math.min(size, n)
    wanted, n = "streams " .. size, n - n % size
  end
  return function()
    local first = cursor * size + 1
    if first > n then return nil end
    if set.ordered[rows] ~= wanted then -- another loop over the same rows may be under way
      if order.carried then rows:streams(size) elseif order.shuffle == false then rows:shuffle() else rows:shuffle(order.seed or 0, epoch) end
      set.ordered[rows] = wanted
    end
    local last = math.min(n, first + size - 1)
    local update = {}
    for at = first, last, micro do update[#update + 1] = rows:batch(at, math.min(micro, last - at + 1)) end
    cursor = cursor + 1
    return update, cursor
  end
end

-- loss(model, set, order): the mean over all supervised tokens, and their number; nil if a signal to stop came meanwhile.
-- order.together: micro-batches that go through the model stage by stage (1). order.sweep: onn.sweep's options.
function data.loss(model, set, order)
  local batch, sweep = require "onn.batch", require "onn.sweep"
  local total, supervised = 0, 0
  local micro = order.micro_batch or order.batch
  local plain = { batch = micro * (order.together or 1), micro_batch = micro, seq_len = order.seq_len, pack = order.pack, shuffle = false }
  for update in data.batches(set, plain) do
    local how = { total = total }
    for k, v in pairs(order.sweep or {}) do how[k] = v end
    local ok, sum = pcall(sweep.loss, model, update, how)
    for _, b in ipairs(update) do
      supervised = supervised + b.supervised
      batch.free(b)
    end
    if signals.pending() then return nil end
    if not ok then error(sum, 0) end
    total = sum
  end
  return total / math.max(supervised, 1), supervised
end

return data
