-- Encoder and decoder, one block for all families. The carry is one tensor: the encoder's tokens, then the decoder's behind them. Encoder
-- blocks work on the first rows and pass the others on; decoder blocks work on the others and look at the first.
-- The carry holds hidden f32 (tokens, width), split (tokens of the encoder), borders of sequences on either side and in all (starts).
local copied = require "onn.arch.copied"
local batches = require "onn.batch"
local core = require "onn.core.ops"
local linear = require "onn.nn.linear"
local ops = require "onn.ops"
local parts = require "onn.arch.parts.stage"
local relative = require "onn.nn.relative"
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"
local values = require "onn.arch.config"
local vocabulary_head = require "onn.arch.vocabulary_head"

local net = { continues = false, trains_on = "pairs of input_ids and decoder_input_ids, by onn forward --gradients alone" }

local SIZE = values.integer(1, 2 ^ 31 - 1)
local kinds = {
  { "width", SIZE, needed = true }, { "inner", SIZE, needed = true }, { "layers", values.integer(1, 10000), needed = true },
  { "heads", values.integer(1, 2 ^ 20), needed = true }, { "vocabulary", SIZE, needed = true }, { "places", SIZE }, { "head_size", SIZE },
  { "decoder_layers", values.integer(1, 10000) }, { "decoder_heads", values.integer(1, 2 ^ 20) }, { "decoder_inner", SIZE },
  { "eps", values.positive }, { "tied", values.flag }, { "scale_embedding", values.flag }, { "scale_logits", values.flag },
  { "buckets", values.integer(4, 2 ^ 20) }, { "farthest", values.integer(2, 2 ^ 20) },
}

local function read(config, family, c, wrong)
  for key, name in pairs(family.config) do c[key] = config[name] end
  for key, value in pairs(family.defaults) do if c[key] == nil then c[key] = value end end
  for _, kind in ipairs(kinds) do
    local key = kind[1]
    if family.config[key] and (kind.needed or c[key] ~= nil) then values.check(family.config[key], c[key], kind[2], wrong) end
  end
  for name, allowed in pairs(family.fixed or {}) do
    if config[name] ~= nil and config[name] ~= allowed then
      wrong[#wrong + 1] = ("'%s' is %s, only %s can be run"):format(name, values.shown(config[name]), values.shown(allowed))
    end
  end
  local name = type(config.architectures) == "table" and config.architectures[1]
  if name and not (type(name) == "string" and (name:find "ForConditionalGeneration$" or name:find "MTModel$")) then
    wrong[#wrong + 1] = ("'architectures' names %s, which is not known for %s"):format(values.shown(name), family.name)
  end
  if #wrong > 0 then return end
  c.decoder_layers, c.decoder_heads, c.decoder_inner = c.decoder_layers or c.layers, c.decoder_heads or c.heads, c.decoder_inner or c.inner
  if not c.head_size and (c.width % c.heads ~= 0 or c.width % c.decoder_heads ~= 0) then
    wrong[#wrong + 1] = ("'%s' %d is no multiple of the heads' numbers, %d and %d"):format(family.config.width, c.width, c.heads, c.decoder_heads)
  end
  local activation = family.activation(config)
  c.activation = parts.activations[activation.name]
  if not c.activation then wrong[#wrong + 1] = ("the activation %s is not known"):format(values.shown(activation.name)) end
  c.gated, c.family, c.names, c.inside = activation.gated, family.name, family.names, family.inside
  c.rms, c.pre_norm, c.bias, c.unscaled = family.rms, family.pre_norm, family.bias, family.unscaled
  c.offset, c.relative = family.offset or 0, family.relative
  c.tied, c.positions, c.kv_heads, c.outputs = c.tied ~= false, c.places and c.places or 2 ^ 20, c.heads, c.vocabulary
  if c.scale_logits == nil then c.scale_logits = family.scale_logits and c.tied end
end

-- Sizes and switches of a model, from its config.json through the family's names.
-- Returns the description, or nil and a list of what is missing or wrong.
function net.describe(config, family)
  local c, wrong = {}, {}
  read(config, family, c, wrong)
  for i, text in ipairs(wrong) do wrong[i] = "config.json: " .. text end
  if #wrong > 0 then return nil, wrong end
  return c
end

function net.ignorable(name)
  return name == "encoder.embed_tokens.weight" or name == "decoder.embed_tokens.weight" or name:find "^model%.%a+%.embed_tokens%.weight$"
    or name == "lm_head.weight" or name:find "DenseReluDense%.dummy"
end

local function head_size(c, side) return c.head_size or c.width / (side == "decoder" and c.decoder_heads or c.heads) end

local function block(c, side, index, number)
  local prefix = c.names[side .. "_block"]:format(index)
  local stage, add = parts.stage(prefix, "block", nil, number)
  stage.side, stage.position = side, index
  local names, heads = c.inside[side], side == "decoder" and c.decoder_heads or c.heads
  local all, inner = heads * head_size(c, side), side == "decoder" and c.decoder_inner or c.inner
  for _, kind in ipairs(side == "decoder" and { "self", "cross" } or { "self" }) do
    for _, role in ipairs { "q", "k", "v" } do
      add.product(("%s.%s.%s"):format(prefix, names[kind], c.inside[role]), kind .. "_" .. role, all, c.width, c.bias)
    end
    add.product(("%s.%s.%s"):format(prefix, names[kind], c.inside.o), kind .. "_o", c.width, all, c.bias)
    add.norm(("%s.%s"):format(prefix, names[kind .. "_norm"]), kind .. "_norm", c.width, not c.rms)
  end
  if c.relative and (c.relative == "each" or index == 0) then
    add.tensor(("%s.%s.relative_attention_bias.weight"):format(prefix, names.self), "relative", { c.buckets, heads }, { vector = true })
  end
  if c.gated then
    add.product(prefix .. "." .. names.gate, "gate", inner, c.width, c.bias)
    add.product(prefix .. "." .. names.gated_up, "up", inner, c.width, c.bias)
  else
    add.product(prefix .. "." .. names.up, "up", inner, c.width, c.bias)
  end
  add.product(prefix .. "." .. names.down, "down", c.width, inner, c.bias)
  add.norm(prefix .. "." .. names.mlp_norm, "mlp_norm", c.width, not c.rms)
  return stage
end

-- Stages of the model; see onn.arch. Blocks are numbered through, the decoder's after the encoder's.
function net.stages(c)
  local n, stages = c.names, {}
  local stage, add = parts.stage(n.embed, "embedding")
  add.tensor(n.embed .. ".weight", "embed", { c.vocabulary, c.width })
  for _, side in ipairs { "encoder", "decoder" } do
    if n.place then add.tensor(n.place:format(side) .. ".weight", side .. "_place", { c.places + c.offset, c.width }) end
    if n.embed_norm then add.norm(n.embed_norm:format(side), side .. "_norm", c.width) end
  end
  stages[1] = stage
  for layer = 0, c.layers - 1 do stages[#stages + 1] = block(c, "encoder", layer, layer) end
  if n.final_norm then
    stage, add = parts.stage(n.final_norm:format "encoder", "norm")
    add.norm(n.final_norm:format "encoder", "final_norm", c.width, not c.rms)
    stages[#stages + 1] = stage
  end
  for layer = 0, c.decoder_layers - 1 do stages[#stages + 1] = block(c, "decoder", layer, c.layers + layer) end
  stage, add = parts.stage(n.head, "head")
  if n.final_norm then add.norm(n.final_norm:format "decoder", "final_norm", c.width, not c.rms) end
  if c.tied then stage.shares = { head = n.embed .. ".weight" } else add.tensor(n.head .. ".weight", "head", { c.vocabulary, c.width }) end
  if n.logits_bias then add.tensor(n.logits_bias, "head_bias", { 1, c.vocabulary }, { vector = true }) end
  stages[#stages + 1] = stage
  return stages
end

-- The batch of named tensors: input_ids (rows, length) for the encoder, decoder_input_ids (rows, length) and labels, each its own token's.
-- Returns it, or nil and what is wrong.
function net.batch(c, given)
  local ids, own, labels = given.input_ids, given.decoder_input_ids, given.labels
  if not own then return nil, "there are no decoder_input_ids" end
  if own:size(1) ~= ids:size(1) then return nil, "input_ids and decoder_input_ids have different numbers of rows" end
  if labels and (labels:size(1) ~= own:size(1) or labels:size(2) ~= own:size(2)) then return nil, "labels and decoder_input_ids differ in shape" end
  for _, list in ipairs { own, labels } do
    for _, row in ipairs(list:to("i64"):totable()) do
      for _, id in ipairs(row) do
        if id >= c.vocabulary or id < 0 and not (list == labels and id == -100) then
          return nil, ("token %d; the model has 0 to %d"):format(id, c.vocabulary - 1)
        end
      end
    end
  end
  local a, b = batches.from_ids(ids, nil, nil, true), batches.from_ids(own, labels, ids:size(1), true)
  local joined = { labels = b.labels, supervised = b.supervised, longest = math.max(a.longest, b.longest), tokens = a.tokens + b.tokens,
    split = a.tokens, encoder_starts = a.starts, decoder_starts = b.starts }
  for _, name in ipairs { "ids", "positions", "rows" } do
    joined[name] = ops.cat(a[name], b[name], 1)
    a[name]:free()
    b[name]:free()
  end
  joined.starts = ops.cat(a.starts, core.affine(b.starts:to "f32", 1, a.tokens):to("i32"):narrow(1, 2, ids:size(1)), 1)
  a.labels:free()
  return joined
end

-- What a batch of so many rows, both sides of that length, looks like to a dry run.
function net.example(_, rows, length)
  local one, starts = batches.example(rows, length), {}
  for r = 0, 2 * rows do starts[r + 1] = r * length end
  local function of(dtype) return tensors.new(dtype, { 2 * one.tokens }) end
  return { ids = of "i32", positions = of "i32", rows = of "i64", labels = one.labels, starts = tensors.from_table(starts, "i32"),
    encoder_starts = one.starts, decoder_starts = one.starts, split = one.tokens, longest = length, supervised = one.tokens, tokens = 2 * one.tokens }
end

-- What is added to the scores of one side's blocks, {table, zero}, by the place of the block.
local function biases(model, side)
  local list, c = relative.tables(), model.sizes
  for _, stage in ipairs(model.stages) do
    local learned = stage.side == side and stage.weights.relative
    if learned then
      local ids, first, last = {}, -c.farthest, side == "encoder" and c.farthest or 0
      for d = first, last do ids[#ids + 1] = relative.bucket(d, c.buckets, c.farthest, side == "encoder") end
      local rows = core.embedding(learned, tensors.from_table(ids, "i32"), "f32")
      list[stage.position] = { table = tensors.keep(rows:transpose(1, 2):contiguous()), zero = c.farthest }
    end
  end
  return list
end

-- The first carry of a batch (see batch()).
function net.start(model, batch)
  return { ids = batch.ids, positions = batch.positions, split = batch.split, starts = batch.starts, encoder_starts = batch.encoder_starts,
    decoder_starts = batch.decoder_starts, encoder_bias = relative.remembered(model, "encoder_bias", biases, "encoder"),
    decoder_bias = relative.remembered(model, "decoder_bias", biases, "decoder") }
end

local function norm(c, stage, x, role)
  local w = stage.weights[role]
  if c.rms then return ops.rms_norm(x, w, c.eps) end
  return ops.layer_norm(x, w, stage.weights[role .. "_bias"], c.eps)
end

-- Products over rows of x; keys and values come from `memory` (x's own if absent), whose sequences begin at key_starts.
local function attention(c, stage, kind, x, memory, mask, ctx)
  local w, size = stage.weights, head_size(c, stage.side)
  local heads = stage.side == "decoder" and c.decoder_heads or c.heads
  local function split(t) return ops.view(t, { t:size(1), heads, size }) end
  local function seen(role)
    if not memory then return split(linear(w[kind .. role], x, ctx)) end
    return tape.with_starts(mask.key_starts, function() return split(linear(w[kind .. role], memory, ctx)) end)
  end
  mask.scale = c.unscaled and 1 or 1 / math.sqrt(size)
  local y = ops.attention(split(linear(w[kind .. "_q"], x, ctx)), seen "_k", seen "_v", mask)
  return linear(w[kind .. "_o"], ops.view(y, { x:size(1), heads * size }), ctx, "f32")
end

local function mlp(c, stage, x, ctx)
  local w = stage.weights
  if not c.gated then return linear(w.down, ops[c.activation](linear(w.up, x, ctx)), ctx, "f32") end
  return linear(w.down, ops.gate(linear(w.gate, x, ctx), linear(w.up, x, ctx), c.activation), ctx, "f32")
end

-- One half of a block: f of x's norm is added to x, or x and f of x are added and then normed.
local function half(c, stage, x, role, ctx, f)
  if c.pre_norm then return ops.add(x, f(parts.cast(norm(c, stage, x, role), ctx))) end
  return norm(c, stage, ops.add(x, f(parts.cast(x, ctx))), role)
end

local forward = {}

local function rows_of(table, ids)
  if type(table) == "table" then return table.rows(ids):to "f32" end
  return ops.embedding(table, ids, "f32")
end

local function sides(carry)
  local tokens = carry.hidden:size(1)
  return ops.narrow(carry.hidden, 1, 1, carry.split), ops.narrow(carry.hidden, 1, carry.split + 1, tokens - carry.split)
end

function forward.embedding(c, stage, carry)
  local w, x = stage.weights, rows_of(stage.weights.embed, carry.ids)
  if c.scale_embedding then x = ops.affine(x, math.sqrt(c.width), 0) end
  carry.hidden = x
  if not w.encoder_place then return carry end
  local list = {}
  for k, side in ipairs { "encoder", "decoder" } do
    local first = k == 1 and 1 or carry.split + 1
    local places = carry.positions:narrow(1, first, k == 1 and carry.split or carry.positions:size(1) - carry.split)
    if c.offset > 0 then places = core.binary(places, tensors.from_table({ c.offset }, "i32"), "add") end
    list[k] = tape.with_starts(carry[side .. "_starts"], function()
      local y = ops.add((select(k, sides(carry))), rows_of(w[side .. "_place"], places))
      return w[side .. "_norm"] and norm(c, stage, y, side .. "_norm") or y
    end)
  end
  carry.hidden = ops.cat(list[1], list[2], 1)
  return carry
end

function forward.norm(c, stage, carry)
  local x, other = sides(carry)
  carry.hidden = ops.cat(tape.with_starts(carry.encoder_starts, function() return norm(c, stage, x, "final_norm") end), other, 1)
  return carry
end

function forward.block(c, stage, carry, ctx)
  local first, second = sides(carry)
  local own, decoder = stage.side == "decoder" and second or first, stage.side == "decoder"
  local starts = carry[stage.side .. "_starts"]
  local biases_of = carry[stage.side .. "_bias"]
  local bias = biases_of[stage.position] or biases_of[0] or {}
  local y = tape.with_starts(starts, function()
    local h = half(c, stage, own, "self_norm", ctx, function(x)
      return attention(c, stage, "self", x, nil, { starts = starts, causal = decoder, bias = bias.table, zero = bias.zero }, ctx)
    end)
    if decoder then
      local memory = parts.cast(first, ctx)
      h = half(c, stage, h, "cross_norm", ctx, function(x)
        return attention(c, stage, "cross", x, memory, { starts = starts, key_starts = carry.encoder_starts, causal = false }, ctx)
      end)
    end
    return half(c, stage, h, "mlp_norm", ctx, function(x) return mlp(c, stage, x, ctx) end)
  end)
  carry.hidden = decoder and ops.cat(first, y, 1) or ops.cat(y, second, 1)
  return carry
end

local function head_input(c, stage, carry, ctx)
  local _, x = sides(carry)
  if not stage.weights.final_norm then return parts.cast(x, ctx) end
  return tape.with_starts(carry.decoder_starts, function() return parts.cast(norm(c, stage, x, "final_norm"), ctx) end)
end

local function multiplier(c) return c.scale_logits and 1 / math.sqrt(c.width) or 1 end

local function bias_of(c, stage) return stage.weights.head_bias and stage.weights.head_bias:view { c.vocabulary } end

forward.head, net.head = vocabulary_head.new {
  input = head_input,
  form = function(c, stage) return bias_of(c, stage), multiplier(c) end,
  starts = function(carry) return carry.decoder_starts end,
}

-- Runs one stage: carry in, carry out (a new table; the old one stays as it was).
function net.forward(c, stage, carry, ctx)
  return forward[stage.kind](c, stage, copied(carry), ctx)
end

return net
