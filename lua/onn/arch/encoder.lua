-- The bidirectional encoder, one block for all families: embeddings of words, places and types, blocks whose norms come after or before
-- each half, and what sits on top (onn.arch.encoder_heads).
-- The carry holds hidden f32 (tokens, width), positions i32, types i32, starts i32 (sequences + 1), rows i64 (for dropout).
local copied = require "onn.arch.copied"
local batches = require "onn.batch"
local core = require "onn.core.ops"
local heads = require "onn.arch.encoder_heads"
local linear = require "onn.nn.linear"
local ops = require "onn.ops"
local parts = require "onn.arch.parts.stage"
local relative = require "onn.nn.relative"
local rope = require "onn.nn.rope"
local tensors = require "onn.core.tensor"
local values = require "onn.arch.config"

local encoder = { continues = false }

local SIZE = values.integer(1, 2 ^ 31 - 1)
local kinds = {
  { "width", SIZE, needed = true }, { "inner", SIZE, needed = true }, { "layers", values.integer(1, 10000), needed = true },
  { "heads", values.integer(1, 2 ^ 20), needed = true }, { "vocabulary", SIZE, needed = true }, { "places", SIZE },
  { "types", values.integer(0, 2 ^ 20) }, { "eps", values.positive }, { "embed_width", SIZE }, { "buckets", values.integer(4, 2 ^ 20) },
  { "farthest", values.integer(2, 2 ^ 20) }, { "head_size", values.integer(1, 2 ^ 20) }, { "padding", values.integer(0, 2 ^ 31 - 1) },
  { "tied", values.flag },
}

-- Values that the arithmetic here takes for granted: any other is refused by name.
local function check_fixed(config, fixed, wrong)
  local names = {}
  for name in pairs(fixed or {}) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local allowed, found = fixed[name], config[name]
    if found ~= nil and found ~= allowed then
      wrong[#wrong + 1] = ("'%s' is %s, only %s can be run"):format(name, values.shown(found), values.shown(allowed))
    end
  end
end

local function read(config, family, has, c, wrong)
  for key, name in pairs(family.config) do c[key] = config[name] end
  for key, value in pairs(family.defaults) do if c[key] == nil then c[key] = value end end
  for _, kind in ipairs(kinds) do
    local key = kind[1]
    if family.config[key] and (kind.needed or c[key] ~= nil) then values.check(family.config[key], c[key], kind[2], wrong) end
  end
  check_fixed(config, family.fixed, wrong)
  c.activation = parts.activations[c.activation]
  if not c.activation then
    wrong[#wrong + 1] = ("'%s' %s is not known"):format(family.config.activation, values.shown(config[family.config.activation]))
  end
  if #wrong > 0 then return end
  if not c.head_size and c.width % c.heads ~= 0 then
    wrong[#wrong + 1] = ("'%s' %d is no multiple of '%s' %d"):format(family.config.width, c.width, family.config.heads, c.heads)
  end
  c.offset = family.offset and family.offset(c) or 0
  if c.places and c.places <= c.offset then
    wrong[#wrong + 1] = ("'%s' %d leaves no place beside %d that are not used"):format(family.config.places, c.places, c.offset)
  end
  c.head_size, c.kv_heads, c.embed_width, c.positions = c.head_size or c.width / c.heads, c.heads, c.embed_width or c.width, (c.places or 2 ^ 20) - c.offset
  c.family, c.pre_norm, c.names, c.inside = family.name, family.pre_norm or false, {}, family.inside
  if c.types == 0 or not family.names.type then c.types = nil end
  local prefix = heads.prefix(config, family, has)
  for role, name in pairs(family.names) do c.names[role] = name and prefix .. name or nil end
  c.bias, c.layer_kinds = family.bias and family.bias(config) or {}, {}
  c.norm_bias, c.first_norm = not family.norm_bias or family.norm_bias(config), family.first_norm
  for layer = 0, c.layers - 1 do c.layer_kinds[layer] = family.layer_kind and family.layer_kind(config, layer) or "full" end
  if family.windows then c.windows = family.windows(config, wrong) end
  for kind, given in pairs(family.ropes and family.ropes(config) or {}) do
    local parameters, problem = rope.read(given, c.head_size)
    c.ropes = c.ropes or {}
    c.ropes[kind] = parameters
    if not parameters then wrong[#wrong + 1] = problem end
  end
  heads.read(config, family, has, c, prefix, wrong)
end

-- Sizes and switches of a model, from its config.json through the family's names; the store's names tell what the config leaves open.
-- Returns the description, or nil and a list of what is missing or wrong.
function encoder.describe(config, family, store)
  local c, wrong = {}, {}
  local has = store and function(name) return store:info(name) ~= nil end
  c.has = has
  read(config, family, has, c, wrong)
  for i, text in ipairs(wrong) do wrong[i] = "config.json: " .. text end
  if #wrong > 0 then return nil, wrong end
  return c
end

local function embedding(c, has)
  local n = c.names
  local stage, add = parts.stage(n.embed, "embedding", has)
  add.tensor(n.embed .. ".weight", "embed", { c.vocabulary, c.embed_width })
  if n.relative then add.tensor(n.relative .. ".weight", "relative", { c.buckets, c.heads }, { vector = true }) end
  if c.places and n.place then add.tensor(n.place .. ".weight", "place", { c.places, c.embed_width }) end
  if c.types then add.tensor(n.type .. ".weight", "type", { c.types, c.embed_width }) end
  if n.embed_norm then add.norm(n.embed_norm, "embed_norm", c.embed_width, c.norm_bias) end
  return stage
end

local function block(c, has, index)
  local names, head_width = c.inside, c.heads * c.head_size
  local prefix = c.names.block:format(index)
  local stage, add = parts.stage(prefix, "block", has, index)
  local function product(role, out, into)
    if names[role] then add.product(prefix .. "." .. names[role], role, out, into, c.bias[role] ~= false) end
  end
  local function norm(role)
    if names[role] and not (role == "norm1" and index == 0 and c.first_norm == false) then
      add.norm(prefix .. "." .. names[role], role, c.width, c.norm_bias)
    end
  end
  product("qkv", 3 * head_width, c.width)
  for _, role in ipairs { "q", "k", "v" } do product(role, head_width, c.width) end
  product("o", c.width, head_width)
  norm "norm1"
  product("up_gate", 2 * c.inner, c.width)
  product("gate", c.inner, c.width)
  product("up", c.inner, c.width)
  product("down", c.width, c.inner)
  norm "norm2"
  return stage
end

-- Stages of the model; see onn.arch.
function encoder.stages(c)
  local has = c.has
  local stages = { embedding(c, has) }
  if c.embed_width ~= c.width then
    local stage, add = parts.stage(c.names.project, "projection", has)
    add.product(c.names.project, "project", c.width, c.embed_width)
    stages[2] = stage
  end
  for layer = 0, c.layers - 1 do stages[#stages + 1] = block(c, has, layer) end
  if c.names.final_norm then
    local stage, add = parts.stage(c.names.final_norm, "norm", has)
    add.norm(c.names.final_norm, "final_norm", c.width, c.norm_bias)
    stages[#stages + 1] = stage
  end
  heads.stages(c, has, stages, encoder.stage)
  return stages
end

encoder.ignorable = heads.ignorable

-- Rows of the table of places. Some families leave the first ones unused and give those of the padding's id to it alone.
local function places(c, batch)
  if c.offset == 0 or tensors.is_dry() then return batch.positions end
  local ids, starts, list, sequence, at = batch.ids:totable(), batch.starts:totable(), {}, 1, 0
  for t = 1, #ids do
    while t > starts[sequence + 1] do sequence, at = sequence + 1, 0 end
    if ids[t] == c.padding then
      list[t] = c.padding
    else
      list[t], at = c.offset + at, at + 1
    end
  end
  return tensors.from_table(list, "i32")
end

-- The batch of named tensors: input_ids (rows, length); labels (rows, length), each its own token's, or (rows) for classes of sequences;
-- token_type_ids. Returns it, or nil and what is wrong.
function encoder.batch(c, given)
  local ids, labels, rows = given.input_ids, given.labels, nil
  local kind, shape = c.top.kind, ids:shape()
  if labels and not c.outputs then return nil, "there are labels, and the model has no head that gives logits" end
  if labels and kind == "spans" then return nil, "labels of answers' places are not known" end
  if labels then
    local wanted = kind == "classes" and { shape[1] } or shape
    local found = labels:shape()
    if #found ~= #wanted or found[1] ~= wanted[1] or found[2] ~= wanted[2] then
      return nil, ("labels are (%s), expected (%s)"):format(table.concat(found, ", "), table.concat(wanted, ", "))
    end
    rows = labels:view { labels:numel() }:to("i64"):totable()
    for _, label in ipairs(rows) do
      if label ~= -100 and (label < 0 or label >= c.outputs) then
        return nil, ("label %d; the model has 0 to %d"):format(label, c.outputs - 1)
      end
    end
  end
  local b = batches.from_ids(ids, kind ~= "classes" and labels or nil, nil, true)
  if kind == "classes" and labels then -- a sequence's class is the label of its first token
    local list, supervised = {}, 0
    for t = 1, shape[1] * shape[2] do list[t] = -100 end
    for r, label in ipairs(rows) do
      list[(r - 1) * shape[2] + 1] = label
      if label ~= -100 then supervised = supervised + 1 end
    end
    b.labels, b.supervised = tensors.from_table(list, "i32"), supervised
  end
  if given.token_type_ids then
    local types = given.token_type_ids
    if not c.types then return nil, "there are token_type_ids, and the model has no types" end
    if types:numel() ~= ids:numel() then return nil, "token_type_ids and input_ids differ in size" end
    b.types = types:contiguous():to("i32"):view { types:numel() }
    for _, v in ipairs(b.types:totable()) do
      if v < 0 or v >= c.types then return nil, ("token type %d; the model has 0 to %d"):format(v, c.types - 1) end
    end
  end
  return b
end

-- Tables of angles by kind of layer, for the longest sequence of a batch.
local function tables_of(model, batch)
  local c, list = model.sizes, {}
  if not c.ropes then return nil end
  model.angles_of = model.angles_of or {}
  for kind, parameters in pairs(c.ropes) do
    model.angles_of[kind] = model.angles_of[kind] or rope.new(parameters)
    list[kind] = model.angles_of[kind]:upto(batch.longest or batch.ids:size(1))
  end
  return list
end

-- What is added to scores by kind of layer, f32 (heads, 2 * span - 1) by the key's place less the query's: a learned number by the
-- bucket of that distance, or nothing within a window on both sides and minus infinity beyond it. A table's ends stand for all beyond.
local function biases(model)
  local c, list, any = model.sizes, relative.tables(), false
  local learned = model.stages[1].weights.relative
  if learned then
    local span, ids = c.farthest + 1, {}
    for d = 1 - span, span - 1 do ids[#ids + 1] = relative.bucket(d, c.buckets, c.farthest, true) end
    local rows = core.embedding(learned, tensors.from_table(ids, "i32"), "f32")
    list.full, any = { table = tensors.keep(rows:transpose(1, 2):contiguous()), zero = span - 1 }, true
  end
  for kind, window in pairs(c.windows or {}) do
    local row, rows = {}, {}
    for d = -window - 1, window + 1 do row[#row + 1] = math.abs(d) > window and -1e30 or 0 end
    for h = 1, c.heads do rows[h] = row end
    list[kind], any = { table = tensors.keep(tensors.from_table(rows, "f32")), zero = window + 1 }, true
  end
  return any and list or nil
end

-- The first carry of a batch (see onn.batch), which may have types, i32 (tokens).
function encoder.start(model, batch)
  local c = model.sizes
  return { ids = batch.ids, positions = batch.positions, places = c.names.place and places(c, batch), starts = batch.starts,
    angles = tables_of(model, batch), bias = relative.remembered(model, "biases", biases),
    types = c.types and (batch.types or tensors.zeros("i32", { batch.ids:size(1) })) }
end

local norm, cast = parts.norm, parts.cast

-- Queries and keys that are turned stay f32 until then.
local function attention(c, stage, x, carry, ctx)
  local w, tokens, width = stage.weights, x:size(1), c.heads * c.head_size
  local angles = carry.angles and carry.angles[c.layer_kinds[stage.index]]
  local q, k, v
  if w.qkv then
    q, k, v = ops.split(linear(w.qkv, x, ctx, angles and "f32"), { width, width, width })
    if angles then v = cast(v, ctx) end
  else
    q, k, v = linear(w.q, x, ctx, angles and "f32"), linear(w.k, x, ctx, angles and "f32"), linear(w.v, x, ctx)
  end
  local function split(t) return ops.view(t, { tokens, c.heads, c.head_size }) end
  q, k, v = split(q), split(k), split(v)
  if angles then
    q, k = ops.rope(q, angles, carry.positions, ctx.dtype), ops.rope(k, angles, carry.positions, ctx.dtype)
  end
  local bias = carry.bias and carry.bias[c.layer_kinds[stage.index]] or {}
  local y = ops.attention(q, k, v, { starts = carry.starts, causal = false, scale = 1 / math.sqrt(c.head_size), bias = bias.table,
    zero = bias.zero })
  return linear(w.o, ops.view(y, { tokens, width }), ctx, "f32")
end

local function mlp(c, stage, x, ctx)
  local w = stage.weights
  if not (w.gate or w.up_gate) then return linear(w.down, ops[c.activation](linear(w.up, x, ctx)), ctx, "f32") end
  local gate, up
  if w.up_gate then
    gate, up = ops.split(linear(w.up_gate, x, ctx), { c.inner, c.inner })
  else
    gate, up = linear(w.gate, x, ctx), linear(w.up, x, ctx)
  end
  return linear(w.down, ops.gate(gate, up, c.activation), ctx, "f32")
end

local forward = {}

-- Rows of an embedding in f32; it is a tensor, or lies in its file.
local function rows_of(table, ids)
  if type(table) == "table" then return table.rows(ids):to "f32" end
  return ops.embedding(table, ids, "f32")
end

function forward.embedding(c, stage, carry)
  local w = stage.weights
  local x = rows_of(w.embed, carry.ids)
  if w.type then x = ops.add(x, rows_of(w.type, carry.types)) end
  if w.place then x = ops.add(x, rows_of(w.place, carry.places)) end
  if w.embed_norm then x = norm(c, stage, x, "embed_norm") end
  carry.hidden = x
  return carry
end

function forward.projection(_, stage, carry, ctx)
  carry.hidden = linear(stage.weights.project, cast(carry.hidden, ctx), ctx, "f32")
  return carry
end

function forward.norm(c, stage, carry)
  carry.hidden = norm(c, stage, carry.hidden, "final_norm")
  return carry
end

function forward.block(c, stage, carry, ctx)
  local x = carry.hidden
  if c.pre_norm then
    local into = stage.weights.norm1 and norm(c, stage, x, "norm1") or x
    local h = ops.add(x, attention(c, stage, cast(into, ctx), carry, ctx))
    carry.hidden = ops.add(h, mlp(c, stage, cast(norm(c, stage, h, "norm2"), ctx), ctx))
  else
    local h = norm(c, stage, ops.add(x, attention(c, stage, cast(x, ctx), carry, ctx)), "norm1")
    carry.hidden = norm(c, stage, ops.add(h, mlp(c, stage, cast(h, ctx), ctx)), "norm2")
  end
  return carry
end

for kind, run in pairs(heads.forward) do forward[kind] = run end
encoder.head = heads.head

-- Runs one stage: carry in, carry out (a new table; the old one stays as it was).
function encoder.forward(c, stage, carry, ctx)
  local out = copied(carry)
  return forward[stage.kind](c, stage, out, ctx)
end

return encoder
