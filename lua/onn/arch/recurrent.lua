-- Recurrent nets: an embedding, one stage per layer of nn.RNN, nn.LSTM or nn.GRU, and a linear head over each token's output, or,
-- where the config has num_labels, over each sequence's last state. All arithmetic is f32.
-- The carry holds hidden f32 (tokens, width) and starts i32 (sequences + 1). State goes from one part of a text to the next through
-- ctx.cache (generation) or ctx.memory (training on a stream), both onn.recurrent_state.
local copied = require "onn.arch.copied"
local batches = require "onn.batch"
local first = require "onn.nn.first"
local linear = require "onn.nn.linear"
local ops = require "onn.ops"
local State = require "onn.recurrent_state"
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"
local values = require "onn.arch.config"

local recurrent = { dtype = "f32", cache = State.cache, memory = State.memory }

local SIZE, COUNT = values.integer(1, 2 ^ 31 - 1), values.integer(1, 10000)
local LONGEST = 2 ^ 31 - 1 -- tokens of a sequence; there are no positions that end

local kinds = {
  { "vocabulary", SIZE }, { "embedding", SIZE }, { "hidden", values.integer(1, 2 ^ 28) }, { "layers", COUNT }, { "bidirectional", values.flag },
  { "projection", values.integer(0, 2 ^ 28) }, { "bias", values.flag },
  { "dropout", { check = function(v) return type(v) == "number" and v >= 0 and v < 1 end, text = "a number from 0 to below 1" } },
}

local cells = { rnn = { tanh = "tanh", relu = "relu" }, lstm = "lstm", gru = "gru" }
local gates = { tanh = 1, relu = 1, lstm = 4, gru = 3 }

-- The names of classes by number, where the config has them.
local function labels_of(config)
  local names = {}
  for id, name in pairs(type(config.id2label) == "table" and config.id2label or {}) do
    if tonumber(id) and type(name) == "string" then names[tonumber(id)] = name end
  end
  return names
end

-- Sizes and switches of a model from its config.json, or nil and a list of what is missing or wrong.
function recurrent.describe(config, family)
  local c, wrong = { names = family.names, family = family.name }, {}
  for key, name in pairs(family.config) do
    c[key] = config[name]
    if c[key] == nil then c[key] = family.defaults[key] end
  end
  for _, kind in ipairs(kinds) do values.check(family.config[kind[1]], c[kind[1]], kind[2], wrong) end
  if c.range ~= nil then values.check(family.config.range, c.range, values.positive, wrong) end
  c.classes = config.num_labels or config.num_classes
  if config.tie_word_embeddings then wrong[#wrong + 1] = "'tie_word_embeddings': a head that shares the embedding is not known here" end
  if c.classes ~= nil then values.check(config.num_labels and "num_labels" or "num_classes", c.classes, SIZE, wrong) end
  if config.max_position_embeddings ~= nil then values.check("max_position_embeddings", config.max_position_embeddings, SIZE, wrong) end
  local cell = cells[family.cell]
  c.cell = type(cell) == "table" and cell[c.nonlinearity] or type(cell) == "string" and cell or nil
  if not c.cell then wrong[#wrong + 1] = ("'nonlinearity' should be 'tanh' or 'relu', found %s"):format(values.shown(c.nonlinearity)) end
  if #wrong == 0 and c.projection > 0 and (c.cell ~= "lstm" or c.projection >= c.hidden) then
    wrong[1] = c.cell ~= "lstm" and "'proj_size' is for an LSTM alone" or "'proj_size' should be below 'hidden_size'"
  end
  table.sort(wrong)
  for i, text in ipairs(wrong) do wrong[i] = "config.json: " .. text end
  if #wrong > 0 then return nil, wrong end
  c.out = c.projection > 0 and c.projection or c.hidden
  c.directions = c.bidirectional and 2 or 1
  c.width, c.positions, c.outputs = c.out * c.directions, config.max_position_embeddings or LONGEST, c.classes or c.vocabulary
  if c.classes then c.top, c.labels = { kind = "classes" }, labels_of(config) end
  c.inner = gates[c.cell] * c.hidden * c.directions * c.layers
  return c
end

local suffixes = { "", "_reverse" }

-- One layer's stage: for each direction the input's and the state's weights, which an adapter may sit on, and the projection.
local function layer_stage(c, index)
  local prefix = c.names.layers
  local stage = { name = ("%s.l%d"):format(prefix, index), kind = "block", index = index, layers = {}, tensors = {}, untiled = true }
  local into, rows = index == 0 and c.embedding or c.width, gates[c.cell] * c.hidden
  local function matrix(role, out, width, adapted)
    local name = ("%s.weight_%s_l%d%s"):format(prefix, role:match "^[^_]+", index, role:match "_reverse$" or "")
    stage.tensors[#stage.tensors + 1] = { name = name, role = role, shape = { out, width } }
    if adapted then stage.layers[#stage.layers + 1] = { role = role, name = name, out = out, into = width, tensor = name } end
  end
  for d = 1, c.directions do
    local suffix = suffixes[d]
    matrix("ih" .. suffix, rows, into, true)
    matrix("hh" .. suffix, rows, c.out, true)
    if c.bias then
      for _, role in ipairs { "ih", "hh" } do
        stage.tensors[#stage.tensors + 1] = { name = ("%s.bias_%s_l%d%s"):format(prefix, role, index, suffix), role = role .. suffix .. "_bias",
          shape = { rows }, vector = true }
      end
    end
    if c.projection > 0 then matrix("hr" .. suffix, c.out, c.hidden) end
  end
  return stage
end

function recurrent.stages(c)
  local n, stages = c.names, {}
  stages[1] = { name = n.embed, kind = "embedding", layers = {},
    tensors = { { name = n.embed .. ".weight", role = "embed", shape = { c.vocabulary, c.embedding } } } }
  for index = 0, c.layers - 1 do stages[#stages + 1] = layer_stage(c, index) end
  stages[#stages + 1] = { name = n.head, kind = "output", layers = {}, tensors = {
    { name = n.head .. ".weight", role = "head", shape = { c.outputs, c.width } },
    { name = n.head .. ".bias", role = "head_bias", shape = { c.outputs }, vector = true },
  } }
  return stages
end

-- torch.nn's own: embeddings normal, everything else uniform within 1 / sqrt(width).
function recurrent.first_value(c, t, seed)
  if t.role == "embed" then return first.value("normal", c.range or 1, t, seed) end
  local head = t.role == "head" or t.role == "head_bias"
  return first.value("uniform", 1 / math.sqrt(head and c.width or c.hidden), t, seed)
end

-- The first carry of a batch {ids, starts}; one without starts is of one token for each sequence.
function recurrent.start(_, batch)
  local starts = batch.starts
  if not starts then
    local borders = {}
    for s = 0, batch.ids:size(1) do borders[s + 1] = s end
    starts = tensors.from_table(borders, "i32")
  end
  return { ids = batch.ids, starts = starts, positions = batch.positions }
end

local forward = {}

function forward.embedding(_, stage, carry)
  local table = stage.weights.embed
  if type(table) == "table" then
    carry.hidden = table.rows(carry.ids):to "f32"
  else
    carry.hidden = ops.embedding(table, carry.ids, "f32")
  end
end

local function direction(c, stage, x, carry, ctx, suffix)
  local w, d = stage.weights, suffix == "" and 1 or 2
  local layer = w["hh" .. suffix]
  local adapter = layer.adapter
  local memory = ctx.cache or ctx.memory
  local how = { cell = c.cell, reverse = d == 2, scale = adapter and adapter.scale }
  local state = memory and memory:get(stage.index, d)
  local gx = linear(w["ih" .. suffix], x, { training = ctx.training, seed = ctx.seed, epoch = ctx.epoch, rows = ctx.rows })
  local y, last, last_cell = ops.recurrent(gx, layer.weight, layer.bias, w["hr" .. suffix], adapter and adapter.a, adapter and adapter.b, how,
    carry.starts, state)
  if memory then memory:put(stage.index, d, last, last_cell) end
  return y
end

function forward.block(c, stage, carry, ctx)
  local x = carry.hidden
  if c.dropout > 0 and ctx.training and stage.index > 0 then
    local site = ("%s/dropout/%d"):format(stage.name, ctx.epoch or 0)
    x = ops.dropout(x, c.dropout, { seed = ctx.seed, site = site, counter = 0 }, ctx.rows)
  end
  local y = direction(c, stage, x, carry, ctx, "")
  carry.hidden = c.bidirectional and ops.cat(y, direction(c, stage, x, carry, ctx, "_reverse"), 2) or y
end

-- Each sequence's final state: forward it is at its last token, in reverse at its first.
local function final(c, hidden, starts)
  local at = starts:totable()
  for i, start in ipairs(at) do at[i] = start - 1 end
  local last = tensors.from_table({ unpack(at, 2) }, "i32")
  if not c.bidirectional then return ops.gather(hidden, last) end
  local ahead, back = ops.split(hidden, { c.out, c.out })
  return ops.cat(ops.gather(ops.contiguous(ahead), last), ops.gather(ops.contiguous(back), starts:narrow(1, 1, #at - 1)), 2)
end

local function classify(stage, x, labels, carry, ctx)
  local logits = ops.linear(x, stage.weights.head, stage.weights.head_bias)
  if labels then carry.nll = ops.class_loss(logits, labels, ctx.loss_scale) else carry.logits = logits end
end

-- With ctx.labels carry.nll, the loss of each token or sequence; else logits f32: (tokens, vocabulary), of ctx.only's rows if given, or
-- (sequences, classes). A sequence's label is at its first token.
function forward.output(c, stage, carry, ctx)
  if not c.classes then
    carry.last_hidden = ctx.only and ctx.only(carry.hidden) or carry.hidden
    return classify(stage, carry.last_hidden, ctx.labels, carry, ctx)
  end
  local own, count = {}, carry.starts:size(1) - 1
  for s = 0, count do own[s + 1] = s end
  tape.with_starts(tensors.from_table(own, "i32"), function()
    local labels
    if ctx.labels and tensors.is_dry() then
      labels = tensors.new("i32", { count })
    elseif ctx.labels then
      labels = {}
      local all, starts = ctx.labels:totable(), carry.starts:totable()
      for s = 1, count do labels[s] = all[starts[s] + 1] end
      labels = tensors.from_table(labels, "i32")
    end
    classify(stage, final(c, carry.hidden, carry.starts), labels, carry, ctx)
  end)
end

-- The batch of named tensors: ids `x` or input_ids (rows, length) and labels, (rows) for a classifier, else as onn.batch has them.
function recurrent.batch(c, given)
  local ids, labels = given.input_ids or given.x, given.labels
  if not ids then return nil, "there is no tensor 'input_ids' or 'x'" end
  local shape = ids:shape()
  if #shape ~= 2 then return nil, "input_ids should be (rows, length)" end
  if not c.classes then return batches.from_ids(ids, labels) end
  local b = batches.from_ids(ids, nil, nil, true)
  local list = {}
  for t = 1, shape[1] * shape[2] do list[t] = -100 end
  if labels then
    if labels:numel() ~= shape[1] then return nil, ("labels are %d numbers, expected %d"):format(labels:numel(), shape[1]) end
    for r, label in ipairs(labels:view { shape[1] }:to("i64"):totable()) do
      if label ~= -100 and (label < 0 or label >= c.classes) then return nil, ("label %d; the model has 0 to %d"):format(label, c.classes - 1) end
      list[(r - 1) * shape[2] + 1] = label
      if label ~= -100 then b.supervised = b.supervised + 1 end
    end
  end
  b.labels:free()
  b.labels = tensors.from_table(list, "i32")
  return b
end

-- Runs one stage: carry in, carry out (a new table; the old one stays as it was).
function recurrent.forward(c, stage, carry, ctx)
  local out = copied(carry)
  forward[stage.kind](c, stage, out, ctx)
  return out
end

return recurrent
