-- Architectures: which family a config names, which stages it has, and whether a store holds exactly their tensors.
-- A family is one file in arch/families; it may build on another (base). Its `net` names the module onn.arch.NET that runs it
-- (default: decoder). A net has
--   describe(config, family, has) -> sizes and switches, or nil and a list of what is wrong
--   stages(sizes, has)       -> {name, kind, index, layers = {{role, name, out, into, tensor}}, tensors = {{name, shape, role, vector}}, shares}
--                               (a layer's tensor: its weight's name, default: name .. ".weight")
--   start(model, batch)      -> the first carry
--   forward(sizes, stage, carry, ctx) -> the next carry; the last stage gives carry.nll where ctx.labels are, else carry.logits
--   ignorable(name)          -> optional: does nothing read this tensor of a checkpoint?
--   batch(sizes, given)      -> optional: the batch of named tensors, or nil and a message (default: onn.batch.from_ids)
--   dtype                    -> optional: the arithmetic's only one
--   initial(sizes, tensor)   -> optional: what a new one begins with: "normal", deviation; "uniform", bound; or "constant", value
--   open_data(model, source, opt) -> optional: the set (onn.data) of a source that is not made of tokens
--   elements(sizes)          -> optional: numbers that training holds for a token (onn.plan.plain)
--   cache(model, slots)      -> optional: what generation keeps between tokens (default: onn.cache's keys and values)
--   memory(model, sequences) -> optional: what training on a stream carries from one update to the next (onn.recurrent_state)
--   head                     -> begin, part, finish: the last stage in steps, for a net whose last stage is of kind "head"
-- has(name): is a tensor in the store? nil where there is no store. A tensor that is `fresh` may be made anew (onn.model).
-- Kinds of stages: of an "embedding" only rows are read; a "head" passes in row tiles; every other is a unit, "block"s have an index.
local json = require "onn.core.json"
local lfs = require "lfs"
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

-- {family, sizes, stages} of a config, or nil and a list of what is missing for running it. store: whose tensors tell what the
-- config leaves open, or nil.
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
    return nil, { ("architecture %s is not known (known: %s)"):format(values.shown(kind), table.concat(known, ", ")) }
  end
  local nested = type(given.text_config) == "table" and given.text_config or {}
  for key, value in pairs(family.absent or {}) do
    if given[key] == nil and nested[key] == nil then config[key] = value end
  end
  local has = store and function(name) return store:info(name) ~= nil end
  local net = require("onn.arch." .. (family.net or "decoder"))
  local sizes, wrong = net.describe(config, family, has)
  if not sizes then return nil, wrong end
  return { family = family, sizes = sizes, stages = net.stages(sizes, has), config = config, net = net }
end

local function shape_text(shape) return "(" .. table.concat(shape, ", ") .. ")" end

-- Buffers that old checkpoints carry and nothing reads.
local function ignorable(name, described)
  return name:find "rotary_emb%.inv_freq$" or name:find "%.attn%.bias$"
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
        elseif not ({ F32 = true, BF16 = true, F16 = true })[entry.dtype] then
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
