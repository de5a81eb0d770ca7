-- What a micro-batch's passes through a model's stages take, in bytes beside the weights and in operations: by dry runs (onn.dry) of the
-- stages' own code under the sweeps' own tapes, so that it holds for whatever a stage is made of. Stages of one shape that get a hidden
-- state of one shape cost the same: one dry run serves them all, and is remembered as long as its model is.
local Cache = require "onn.cache"
local batch = require "onn.batch"
local dry = require "onn.dry"
local phantom = require "onn.plan.phantom"
local scope = require "onn.scope"
local sweep = require "onn.sweep"
local tensors = require "onn.core.tensor"

local costs = {}

local function used() return tensors.memory().used end
local function peak() return tensors.memory().peak end

-- A value as text, the same for equal ones, whatever their tables' order.
local function text_of(value)
  if type(value) ~= "table" then return tostring(value) end
  local parts = {}
  for k, v in pairs(value) do parts[#parts + 1] = text_of(k) .. "=" .. text_of(v) end
  table.sort(parts)
  return "{" .. table.concat(parts, ",") .. "}"
end

-- A number for what makes a stage what it is, its place and its tensors' names aside: shapes, roles, and what the sizes say of its number alone.
local function signature(model, i, known)
  local stage, parts = model.stages[i], {}
  for _, t in ipairs(stage.tensors) do
    local dtype = t.vector and "" or phantom.stored(model, t.name)
    parts[#parts + 1] = ("%s %s %s"):format(t.role, table.concat(t.shape, "x"), dtype)
  end
  for key, value in pairs(stage) do
    if not ({ tensors = 1, layers = 1, name = 1, index = 1, weights = 1, trained = 1 })[key] then parts[#parts + 1] = key .. text_of(value) end
  end
  for key, list in pairs(model.sizes) do
    if key ~= "built" and stage.index and type(list) == "table" and list[stage.index] ~= nil then parts[#parts + 1] = key .. text_of(list[stage.index]) end
  end
  table.sort(parts)
  local text = table.concat(parts, ";")
  if not known.kinds[text] then known.count, known.kinds[text] = known.count + 1, known.count + 1 end
  return known.kinds[text]
end

local remembered = setmetatable({}, { __mode = "k" }) -- model -> {signatures (of its stages), kinds ({[text] = number}), count, [text] = costs}

local function memo(model)
  remembered[model] = remembered[model] or { signatures = {}, kinds = {}, count = 0 }
  return remembered[model]
end

-- f(shadow) in a dry run with the model's shadow; remembered by the text of what it depends on.
local function once(model, opt, what, f)
  local known = memo(model)
  local layout = opt.layout and (opt.tile or "whole") or "resident"
  local key = table.concat({ what, layout, tostring(opt.full), tostring(opt.rank), tostring(opt.dropout), tensors.threads() }, "|")
  if not known[key] then known[key] = dry(function() return f(phantom.model(model, opt)) end) end
  return known[key]
end

-- Runs f about a stage; what it raises is said with the stage's name.
local function about(stage, f)
  local ok, result = pcall(f)
  if not ok then error(("%s: %s"):format(stage.name, tostring(result):match "^[^\n]*"), 0) end
  return result
end

-- The size of such a batch as text, that of its images included.
local function size_of(model, rows, length)
  return ("%dx%d%s"):format(rows, length, model.pictures and (" of %dx%d"):format(unpack(model.pictures)) or "")
end

-- What a batch of so many rows looks like to a model: its net says so, or it is one of tokens.
local function example_of(model, rows, length)
  if model.net.example then return model.net.example(model, rows, length) end
  return batch.example(rows, length)
end

-- The modules of stage i that get an adapter, in the order of its layers, and as text.
local function modules_of(model, i, modules)
  local list, names = {}, {}
  for k, layer in ipairs(model.stages[i].layers) do
    if modules and modules[layer] then list[layer], names[#names + 1] = true, k end
  end
  return list, table.concat(names, ",")
end

local function like(t) return { t:dtype(), t:shape() } end

-- One micro-batch through stage i, forward, and if `back` under a tape and back. hidden: {dtype, shape} of what comes in, or nil.
-- Returns {out = {dtype, shape}, carry (its bytes), forward (most bytes, those of what comes out included), flops; of the way back: tape
-- (bytes that it keeps), back (most bytes beside the tape and the gradient of what comes out), back_flops}.
local function pass(shadow, i, rows, length, hidden, back, more)
  shadow.use(i, more)
  local stage, example = shadow.stages[i], example_of(shadow, rows, length)
  local carry = shadow:carry(example)
  carry.hidden = hidden and tensors.new(hidden[1], hidden[2]) or carry.hidden
  local ctx = { dtype = shadow.dtype, training = back, seed = 0, epoch = 0, labels = example.labels, rows = example.rows, loss_scale = 1,
    dry = true }
  tensors.reset_peak()
  local before, flops = used(), tensors.dry_flops()
  local t, out
  if back then
    t, out = sweep.taped(shadow, i, carry, ctx, hidden ~= nil)
  else
    out = scope(shadow.run, shadow.sizes, stage, carry, ctx)
  end
  local got = { forward = peak() - before, flops = tensors.dry_flops() - flops, out = like(out.hidden) }
  local kept = used()
  local dy = tensors.new(out.hidden:dtype(), out.hidden:shape())
  got.carry = used() - kept
  if not back then return got end
  got.tape = kept - before - got.carry
  tensors.reset_peak()
  before, flops = used(), tensors.dry_flops()
  sweep.walked(t, out.hidden, dy, hidden and carry.hidden, example.starts)
  got.back, got.back_flops = peak() - before, tensors.dry_flops() - flops
  return got
end

costs.pass = pass

-- The head and loss of n micro-batches of what comes in, and if `back` their way back: {bytes, flops}.
local function head(shadow, rows, length, hidden, n, back)
  local last = #shadow.stages
  shadow.use(last)
  local example, micros, before, flops = example_of(shadow, rows, length), {}, nil, nil
  for m = 1, n do micros[m] = example end
  sweep.dry_head(shadow, micros, back, function() return tensors.new(hidden[1], hidden[2]) end, function()
    tensors.reset_peak()
    before, flops = used(), tensors.dry_flops()
  end)
  return { bytes = peak() - before, flops = tensors.dry_flops() - flops }
end

costs.pass_head = head

-- Costs of micro-batches of `rows` rows of `length` tokens. opt: lowest (position of the first stage that is walked back through; past the
-- last: none), modules ({[layer] = true}), full, rank, dropout, layout and tile (of the ring that weights pass through, or nil). Returns {
--   stages: for all but the last, pass()'s;  carry: bytes of the largest hidden state between two stages;  hidden: bytes of the one that
--   comes into the lowest stage, to the element;
--   batch: bytes of ids, labels and the like;  common: of what a sweep holds once, as tables of positions;
--   head(n, back): bytes at the last stage with n micro-batches at once;  head_flops(back): its operations for one }.
function costs.of(model, rows, length, opt)
  local known, result, last = memo(model), { stages = {}, carry = 0, hidden = 0 }, #model.stages
  local size, hidden = size_of(model, rows, length), nil
  for i = 1, last - 1 do
    known.signatures[i] = known.signatures[i] or signature(model, i, known)
    local modules, named = modules_of(model, i, opt.modules)
    local back = i >= opt.lowest
    local what = table.concat({ size, known.signatures[i], text_of(hidden), tostring(back), named }, "|")
    local one = once(model, opt, what, function(shadow)
      return about(model.stages[i], function() return pass(shadow, i, rows, length, hidden, back, { modules = modules }) end)
    end)
    result.stages[i], hidden, result.carry = one, one.out, math.max(result.carry, one.carry)
    if i + 1 == math.min(opt.lowest, last) then
      result.hidden = hidden[1] == "f32" and 4 or 2
      for _, n in ipairs(hidden[2]) do result.hidden = result.hidden * n end
    end
  end
  local held = once(model, { layout = opt.layout, tile = opt.tile }, size .. "|batch", function(shadow)
    local before = used()
    local example = example_of(shadow, rows, length)
    local bytes = used() - before
    scope(function() shadow:carry(example) end)
    tensors.reset_peak()
    before = used()
    shadow:carry(example)
    return { batch = bytes, common = peak() - before }
  end)
  result.batch, result.common = held.batch, held.common
  local function head_of(n, back)
    return once(model, opt, table.concat({ size, "head", n, tostring(back), text_of(hidden) }, "|"), function(shadow)
      return about(model.stages[last], function() return head(shadow, rows, length, hidden, n, back) end)
    end)
  end
  function result.head(n, back) return head_of(n, back).bytes end
  function result.head_flops(back) return head_of(1, back).flops end
  return result
end

-- Costs of one part of `tokens` tokens without gradients, in the middle of generating if cache (tokens that keys and values are kept for)
-- is given. opt: layout, tile. Returns {forward (bytes at the largest moment of the stages but the last), head (of the last one's, logits
-- of one row), logits (bytes of those), carry (of a hidden state), common (of tables of positions)}.
function costs.text(model, tokens, cache, opt)
  local size, known = ("%d of %d"):format(tokens, cache), memo(model)
  local result, hidden, last = { forward = 0, carry = 0 }, nil, #model.stages
  local function item_of(shadow, only)
    local slots = Cache.new(shadow, 1, cache)
    slots.lengths[1] = math.max(0, cache - tokens)
    local part = slots:part(1, tokens)
    local example = example_of(shadow, 1, tokens)
    example.longest, example.starts = cache, part.q_starts
    local before = used()
    local carry = shadow:carry(example)
    result.common = used() - before
    carry.hidden = hidden and tensors.new(hidden[1], hidden[2]) or carry.hidden
    return { carry = carry, ctx = { cache = part, dtype = shadow.dtype, only = only, dry = true } }, slots
  end
  for i = 1, last do
    known.signatures[i] = known.signatures[i] or signature(model, i, known)
    local what = table.concat({ size, known.signatures[i], text_of(hidden), i == last and "logits" or "text" }, "|")
    local one = once(model, opt, what, function(shadow)
      return about(model.stages[i], function()
        shadow.use(i)
        local item, slots = item_of(shadow, i == last and function(x) return x:narrow(1, tokens, 1) end or nil)
        tensors.reset_peak()
        local before = used()
        if i == last then
          shadow:run_head({ item }, function(one, step) one.carry = scope(step, one.carry) end)
        else
          item.carry = scope(shadow.run, shadow.sizes, shadow.stages[i], item.carry, item.ctx)
        end
        local got = { bytes = peak() - before, common = result.common }
        if i < last then got.out, got.carry = like(item.carry.hidden), item.carry.hidden:bytes() end
        if i == last then got.logits = item.carry.logits:bytes() end
        slots:free()
        item.ctx.cache:free()
        return got
      end)
    end)
    if i == last then
      result.head, result.logits = one.bytes, one.logits
    else
      hidden, result.forward, result.carry = one.out, math.max(result.forward, one.bytes), math.max(result.carry, one.carry)
    end
    result.common = one.common
  end
  return result
end

-- Bytes of what generation carries of `slots` sequences: keys and values with room for `tokens` each, or a net's own.
function costs.cache(model, slots, tokens)
  return once(model, {}, ("cache %d of %d"):format(slots, tokens), function(shadow)
    local before = used()
    local cache = (model.net.cache or Cache.new)(shadow, slots, tokens)
    local bytes = used() - before
    cache:free()
    return { bytes = bytes }
  end).bytes
end

-- Bytes of what training carries on of `sequences` from update to update; 0 for a net that carries nothing.
function costs.memory(model, sequences)
  local c = model.sizes
  if not model.net.memory or c.bidirectional or c.classes then return 0 end
  return once(model, {}, "memory of " .. sequences, function(shadow)
    local before = used()
    model.net.memory(shadow, sequences)
    return { bytes = used() - before }
  end).bytes
end

return costs
