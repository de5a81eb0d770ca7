-- Architectures: which family a config names, which stages it has, and whether a store holds exactly their tensors.
-- A family is one file in arch/families; it may build on another (base). Its `net` names the module onn.arch.NET that runs it
-- (default: decoder). A net has
--   describe(config, family, store) -> sizes and switches, or nil and a list of what is wrong; store: the tensors, or nil for a new model
--   stages(sizes)            -> {name, kind, index, layers = {{role, name, out, into, tensor}}, tensors = {{name, shape, role, vector}}, shares}
--                               (a layer's tensor: its weight's name, default: name .. ".weight")
--   (a stage is `untiled` where it uses weights otherwise than in products, and `routed` {experts, per_token} where it has experts)
--   start(model, batch)      -> the first carry
--   forward(sizes, stage, carry, ctx) -> the next carry; the last stage gives carry.nll where ctx.labels are, else carry.logits
--   continues, trains_on     -> optional: false where it does not continue a text; why the recipes have no rows to train it on
--   ignorable(name)          -> optional: does nothing read this tensor of a checkpoint?
--   batch(sizes, given)      -> optional: the batch of named tensors, or nil and a message (default: onn.batch.from_ids)
--   example(model, rows, length) -> what a batch of that size looks like, for a plan's dry runs (onn.dry); absent: of tokens, onn.batch's
--   head                     -> begin, part, finish: the last stage in steps, for a net whose last stage is of kind "head"
--   data, dtype              -> what its batches hold ("images"; default: tokens), the only dtype of its arithmetic if there is but one
--   train_mode, state        -> of a net whose stages behave otherwise in training, and keep more than parameters (tensors with `state`)
--   cache(model, slots, capacity) -> optional: what generation carries, with onn.cache's interface; ctx.cache is it or one of its parts
--   memory(model, sequences) -> optional: what training on a stream carries from one update to the next (onn.recurrent_state)
--   dtype                    -> optional: the arithmetic's only one
--   open_data(model, source, opt) -> optional: the set (onn.data) of a source that is not made of tokens
--   first_value(sizes, tensor, seed) -> optional: a tensor's first value in training from nothing, or nil: the usual one
-- A tensor that is `fresh` may be made anew (onn.model).
-- What a net takes follows from dry runs of forward, where ctx.dry is true: tensors have shapes and no values. Where shapes depend on values
-- (which experts a token goes to), forward then takes those that cost most.
-- Kinds of stages: of an "embedding" only rows are read; a "head" passes in row tiles; every other is a unit, "block"s have an index.
local json = require "onn.core.json"
local keys = require "onn.arch.keys"
local lfs = require "lfs"
local nearest = require "onn.nearest"
local program = require "onn.core.program"
local values = require "onn.arch.config"

local arch = {}

local function inherit(family, load)
  if not family.base then return family end
  local base = inherit(load(family.base), load)
  local whole = {}
  for k, v in pairs(base) do whole[k] = v end
  for k, v in pairs(family) do
    if k == "names" or k == "config" or k == "defaults" then
      local joined = {}
      for name, value in pairs(base[k]) do joined[name] = value end
      for name, value in pairs(v) do joined[name] = value end
      v = joined
    end
    whole[k] = v
  end
  return whole
end

local families -- model_type -> family

-- All families by model_type, read once from lua/onn/arch/families.
function arch.families()
  if families then return families end
  families = {}
  local function load(name) return require("onn.arch.families." .. name) end
  for file in lfs.dir(program.home .. "/lua/onn/arch/families") do
    local name = file:match "^([%w_]+)%.lua$"
    if name then
      local family = inherit(load(name), load)
      for _, kind in ipairs(family.model_types) do families[kind] = family end
    end
  end
  return families
end

-- A config without JSON nulls, with text_config's keys on top (multimodal checkpoints nest the decoder's there).
local function plain(value)
  if type(value) ~= "table" then return value end
  local copy = {}
  for k, v in pairs(value) do if v ~= json.null then copy[k] = plain(v) end end
  return copy
end

function arch.clean(config)
  local c = plain(config)
  if type(c.text_config) == "table" then for k, v in pairs(c.text_config) do c[k] = v end end
  return c
end

-- Names as a checkpoint of the body alone has them.
local function without_prefix(stages, prefix)
  local function bare(name) return name:sub(1, #prefix) == prefix and name:sub(#prefix + 1) or name end
  for _, stage in ipairs(stages) do
    stage.name = bare(stage.name)
    for _, t in ipairs(stage.tensors) do t.name = bare(t.name) end
    for _, layer in ipairs(stage.layers) do layer.name = bare(layer.name) end
    for role, name in pairs(stage.shares or {}) do stage.shares[role] = bare(name) end
  end
end

local MOST_EXPERTS = 2 ^ 18 -- of all layers: each is several tensors to look for

-- Do the numbers of a mixture of experts fit each other?
local function check_experts(sizes, wrong)
  local m = sizes.moe
  local used = false
  for _, part in ipairs { sizes.feeds or {}, sizes.mixers or {} } do for _, name in pairs(part) do used = used or name == "moe" end end
  if type(m) ~= "table" or type(m.experts) ~= "number" or not used then return end
  local function say(...) wrong[#wrong + 1] = "config.json: " .. (...):format(select(2, ...)) end
  if m.experts * (sizes.layers or 1) > MOST_EXPERTS then
    say("%d experts in each of %d layers are more than the %d that are looked for", m.experts, sizes.layers, MOST_EXPERTS)
  end
  if (m.per_token or 1) > m.experts then say("a token goes to %d of %d experts", m.per_token, m.experts) end
  local groups = m.groups or 1
  if groups > 1 and m.experts % groups ~= 0 then say("%d experts do not part into %d groups", m.experts, groups) end
  if groups > 1 and (m.per_token_groups or 1) > groups then say("a token goes to %d of %d groups of experts", m.per_token_groups, groups) end
end

-- {family, sizes, stages, net} of a config, or nil and a list of what is missing for running it. store: of the tensors, if there is one; names
-- may lack the family's prefix there.
function arch.describe(config, store)
  if type(config) ~= "table" then return nil, { "config.json: an object is expected, found " .. values.shown(config) } end
  local given = config
  config = arch.clean(config)
  local kind = config.model_type or config.architecture
  if type(kind) ~= "string" then return nil, { "config.json: 'model_type' should be text, found " .. values.shown(kind) } end
  local family = arch.families()[kind]
  if not family then
    local known = {}
    for name in pairs(arch.families()) do known[#known + 1] = name end
    table.sort(known)
    local hint = nearest.hint(kind, known)
    return nil, { ("architecture %s is not known%s"):format(values.shown(kind), hint ~= "" and hint or (" (known: %s)"):format(table.concat(known, ", "))) }
  end
  local nested = type(given.text_config) == "table" and given.text_config or {}
  for key, value in pairs(family.absent or {}) do
    if given[key] == nil and nested[key] == nil then config[key] = value end
  end
  local net = require("onn.arch." .. (family.net or "decoder"))
  local read = { model_type = true, architecture = true }
  local sizes, wrong = net.describe(keys.recorded(config, read), family, store)
  if not sizes then return nil, wrong end
  wrong = keys.unread(config, read, family)
  check_experts(sizes, wrong)
  if #wrong > 0 then return nil, wrong end
  local stages = net.stages(sizes)
  if family.prefix and store and not store:info(stages[1].tensors[1].name) then without_prefix(stages, family.prefix) end
  return { family = family, sizes = sizes, stages = stages, config = config, net = net }
end

local function shape_text(shape) return "(" .. table.concat(shape, ", ") .. ")" end

-- Buffers that old checkpoints carry and nothing reads.
local function ignorable(name, described)
  return name:find "rotary_emb%.inv_freq$" or name:find "%.attn%.bias$" or name:find "%.attn%.masked_bias$"
    or name:find "%.self_attn%.slope_rate$" or name:find "%.self_attn%.[kqd][a-z]+_decay$" or name:find "attention%.bias$"
    or name:find "attention%.masked_bias$"
    or (described.sizes.tied and name == described.sizes.names.head .. ".weight")
    or described.net.ignorable and described.net.ignorable(name)
end

-- Compares the stages' tensors with the store's: a list of every missing, mis-shaped and unexpected one; empty if all is well. fresh:
-- tensors that may be made anew may be missing.
function arch.check(described, store, fresh)
  local wrong, expected = {}, {}
  for _, stage in ipairs(described.stages) do
    for _, t in ipairs(stage.tensors) do
      expected[t.name] = true
      local entry = store:info(t.name)
      if not entry and fresh and t.fresh then
        t.made = true
      elseif not entry then
        wrong[#wrong + 1] = ("tensor '%s' %s is missing"):format(t.name, shape_text(t.shape))
      else
        local same = #entry.shape == #t.shape
        for d = 1, #t.shape do same = same and entry.shape[d] == t.shape[d] end
        if not same then
          wrong[#wrong + 1] = ("tensor '%s' has the shape %s, expected %s"):format(t.name, shape_text(entry.shape), shape_text(t.shape))
        elseif t.dtype and entry.dtype:lower() ~= t.dtype then
          wrong[#wrong + 1] = ("tensor '%s' is %s, expected %s"):format(t.name, entry.dtype, t.dtype:upper())
        elseif not t.dtype and not ({ F32 = true, BF16 = true, F16 = true })[entry.dtype] then
          wrong[#wrong + 1] = ("tensor '%s' is %s, expected F32, BF16 or F16"):format(t.name, entry.dtype)
        end
      end
    end
  end
  for _, name in ipairs(store:names()) do
    if not expected[name] and not ignorable(name, described) then wrong[#wrong + 1] = ("tensor '%s' is not expected"):format(name) end
  end
  return wrong
end

return arch
