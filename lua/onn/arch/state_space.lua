-- Models of selective state spaces (mamba, mamba 2): blocks without attention, each one norm and one mixer. Embedding and head are the
-- decoder's. The mixer's own arithmetic is f32 whatever the products' dtype. Carries as the decoder's; positions are not read.
local core = require "onn.core.ops"
local decoder = require "onn.arch.decoder"
local linear = require "onn.nn.linear"
local ops = require "onn.ops"
local StateCache = require "onn.state_cache"
local tensors = require "onn.core.tensor"
local values = require "onn.arch.config"

local state_space = { head = decoder.head }

local SIZE, COUNT = values.integer(1, 2 ^ 31 - 1), values.integer(1, 2 ^ 20)
local kinds = {
  { "width", SIZE, needed = true }, { "layers", values.integer(1, 10000), needed = true }, { "vocabulary", SIZE, needed = true },
  { "states", COUNT, needed = true }, { "conv", values.integer(1, 16), needed = true }, { "eps", values.positive }, { "tied", values.flag },
  { "bias", values.flag }, { "conv_bias", values.flag }, { "expand", values.positive }, { "inner", SIZE }, { "heads", COUNT },
  { "head_size", COUNT }, { "groups", COUNT }, { "norm_eps", values.positive },
}

-- Keys that are looked at here to say so: they tell how first weights are made, which kernels run, or that the residual stream is f32.
local idle = { "time_step_min", "time_step_max", "time_step_floor", "time_step_scale", "time_step_init_scheme", "time_step_rank",
  "use_associative_scan", "use_mambapy", "chunk_size", "residual_in_fp32" }

-- The limits of time steps: {low, high}; high may be infinite, which JSON has no number for.
local function limits(given, wrong)
  if given == nil then return 0, math.huge end
  local low, high = type(given) == "table" and given[1], type(given) == "table" and given[2]
  if type(low) ~= "number" or not (low >= 0) then wrong[1] = "'time_step_limit' should be two numbers" return end
  if type(high) ~= "number" or high > 3e38 then return low, math.huge end
  if not (high >= low) then wrong[1] = "'time_step_limit' should be two numbers, the larger one last" end
  return low, high
end

-- Sizes that follow from others, and whether they fit.
local function complete(c, names, config, wrong)
  c.positions = 2 ^ 20 -- any length goes; so many tokens in a row are enough for plans
  c.inner = c.inner or c.expand * c.width
  if c.inner ~= math.floor(c.inner) then wrong[1] = ("'%s' %g gives no whole width"):format(names.expand, c.expand) end
  if c.family_kind == "heads" then
    if c.heads * c.head_size ~= c.inner then
      wrong[#wrong + 1] = ("'%s' %d times '%s' %d is not the inner width %g"):format(names.heads, c.heads, names.head_size, c.head_size, c.inner)
    elseif c.heads % c.groups ~= 0 then
      wrong[#wrong + 1] = ("'%s' %d is no multiple of '%s' %d"):format(names.heads, c.heads, names.groups, c.groups)
    end
    c.low, c.high = limits(config.time_step_limit, wrong)
    c.channels = c.inner + 2 * c.groups * c.states
  else
    if c.rank == nil or c.rank == "auto" then c.rank = math.ceil(c.width / 16) end
    values.check(names.rank, c.rank, COUNT, wrong)
    c.channels = c.inner
  end
  if c.activation ~= "silu" and c.activation ~= "swish" then
    wrong[#wrong + 1] = ("'%s' %s is not known"):format(names.activation, values.shown(c.activation))
  end
end

-- Sizes and switches of a model from its config.json, or nil and a list of what is missing or wrong. family.mixer: "channels" (mamba:
-- every channel has its own step and decays) or "heads" (mamba 2); family.inner_norm: dt, b and c are normed (falcon mamba).
function state_space.describe(config, family)
  local c, wrong = { family_kind = family.mixer, inner_norm = family.inner_norm, names = family.names, family = family.name }, {}
  for _, key in ipairs(idle) do local _ = config[key] end
  for key, name in pairs(family.config) do
    c[key] = config[name]
    if c[key] == nil then c[key] = family.defaults[key] end
  end
  for _, kind in ipairs(kinds) do
    local key = kind[1]
    if kind.needed or c[key] ~= nil then values.check(family.config[key] or key, c[key], kind[2], wrong) end
  end
  if #wrong == 0 then complete(c, family.config, config, wrong) end
  for i, text in ipairs(wrong) do wrong[i] = "config.json: " .. text end
  if #wrong > 0 then return nil, wrong end
  return c
end

-- One block's tensors beside those of its linear layers: {name, role, shape}. What is no product's weight is f32, whatever its shape.
local function parameters(c)
  local list = { { "conv1d.weight", "conv", { c.channels, 1, c.conv } } }
  if c.conv_bias then list[2] = { "conv1d.bias", "conv_bias", { c.channels } } end
  local function add(...) list[#list + 1] = { ... } end
  if c.family_kind == "heads" then
    add("dt_bias", "dt_bias", { c.heads })
    add("A_log", "a_log", { c.heads })
    add("D", "d", { c.heads })
    add("norm.weight", "gate_norm", { c.inner })
  else
    add("dt_proj.weight", "dt", { c.inner, c.rank }, true)
    add("dt_proj.bias", "dt_bias", { c.inner })
    add("A_log", "a_log", { c.inner, c.states })
    add("D", "d", { c.inner })
  end
  return list
end

local function products(c)
  if c.family_kind == "heads" then
    return { { "in_proj", "in_proj", c.inner + c.channels + c.heads, c.width, c.bias }, { "out_proj", "out_proj", c.width, c.inner, c.bias } }
  end
  return { { "in_proj", "in_proj", 2 * c.inner, c.width, c.bias }, { "x_proj", "x_proj", c.rank + 2 * c.states, c.inner },
    { "out_proj", "out_proj", c.width, c.inner, c.bias } }
end

function state_space.stages(c)
  local n, stages = c.names, {}
  local function vector(name, role, width) return { name = name, role = role, shape = { width }, vector = true } end
  stages[1] = { name = n.embed, kind = "embedding", layers = {},
    tensors = { { name = n.embed .. ".weight", role = "embed", shape = { c.vocabulary, c.width }, vector = false } } }
  for layer = 0, c.layers - 1 do
    local prefix = n.block:format(layer)
    local mixer = prefix .. "." .. n.mixer .. "."
    local stage = { name = prefix, kind = "block", index = layer, layers = {}, tensors = { vector(prefix .. "." .. n.norm .. ".weight", "norm", c.width) } }
    local function add(t) stage.tensors[#stage.tensors + 1] = t end
    for _, p in ipairs(products(c)) do
      local name, role, out, into, bias = unpack(p)
      stage.layers[#stage.layers + 1] = { role = role, name = mixer .. name, out = out, into = into }
      add { name = mixer .. name .. ".weight", role = role, shape = { out, into }, vector = false }
      if bias then add(vector(mixer .. name .. ".bias", role .. "_bias", out)) end
    end
    for _, p in ipairs(parameters(c)) do add { name = mixer .. p[1], role = p[2], shape = p[3], vector = not p[4] } end
    stages[#stages + 1] = stage
  end
  local head = { name = n.head, kind = "head", layers = {}, tensors = { vector(n.final_norm .. ".weight", "final_norm", c.width) } }
  if c.tied then
    head.shares = { head = n.embed .. ".weight" }
  else
    head.tensors[2] = { name = n.head .. ".weight", role = "head", shape = { c.vocabulary, c.width }, vector = false }
  end
  stages[#stages + 1] = head
  return stages
end

function state_space.start(_, batch) return { ids = batch.ids, positions = batch.positions, starts = batch.starts } end

-- What a mixer reads of the tokens before: borders of sequences, and the states of its layer where there is a cache.
local function past(stage, carry, ctx)
  if not ctx.cache then return carry.starts end
  return ctx.cache:states(stage.index)
end

local function groups(x, count, states) return ops.view(ops.contiguous(x), { x:size(1), count, states }) end

local mixers = {}

function mixers.channels(c, stage, x, carry, ctx)
  local w, starts, before, state = stage.weights, past(stage, carry, ctx)
  local h, gate = ops.split(linear(w.in_proj, x, ctx, "f32"), { c.inner, c.inner })
  h = ops.silu(ops.causal_conv(h, w.conv, w.conv_bias, starts, before))
  local dt, b, k = ops.split(linear(w.x_proj, ops.to(h, ctx.dtype), ctx, "f32"), { c.rank, c.states, c.states })
  if c.inner_norm then dt, b, k = ops.rms_norm(dt, nil, c.norm_eps), ops.rms_norm(b, nil, c.norm_eps), ops.rms_norm(k, nil, c.norm_eps) end
  dt = linear({ weight = w.dt, bias = w.dt_bias }, ops.to(dt, ctx.dtype), ctx, "f32")
  local y = ops.scan(h, dt, groups(b, 1, c.states), groups(k, 1, c.states), w.a_log, nil, w.d, { starts = starts, state = state })
  return linear(w.out_proj, ops.to(ops.gate(gate, y, "silu"), ctx.dtype), ctx, "f32")
end

function mixers.heads(c, stage, x, carry, ctx)
  local w, starts, before, state = stage.weights, past(stage, carry, ctx)
  local gate, h, dt = ops.split(linear(w.in_proj, x, ctx, "f32"), { c.inner, c.channels, c.heads })
  h = ops.silu(ops.causal_conv(h, w.conv, w.conv_bias, starts, before))
  local side = c.groups * c.states
  local inner, b, k = ops.split(h, { c.inner, side, side })
  local y = ops.scan(inner, dt, groups(b, c.groups, c.states), groups(k, c.groups, c.states), w.a_log, w.dt_bias, w.d,
    { starts = starts, low = c.low, high = c.high, state = state })
  y = ops.view(ops.gate(gate, y, "silu"), { x:size(1), c.groups, c.inner / c.groups })
  y = ops.view(ops.rms_norm(y, w.gate_norm, c.eps, ctx.dtype), { x:size(1), c.inner })
  return linear(w.out_proj, y, ctx, "f32")
end

-- Runs one stage: carry in, carry out (a new table; the old one stays as it was).
function state_space.forward(c, stage, carry, ctx)
  if stage.kind ~= "block" then return decoder.forward(c, stage, carry, ctx) end
  local out = {}
  for k, v in pairs(carry) do out[k] = v end
  local x = carry.hidden
  out.hidden = ops.add(x, mixers[c.family_kind](c, stage, ops.rms_norm(x, stage.weights.norm, c.eps, ctx.dtype), carry, ctx))
  return out
end

-- The cache of generation for `slots` sequences.
function state_space.cache(model, slots) return StateCache.new(model, slots) end

-- First values of what is neither a product nor a norm, for training from nothing; nil: as usual. Decays of 1, 2, ... and steps around
-- 0.01 (arXiv 2312.00752, 3.6 and appendix); the convolution like a product, uniform by its size.
function state_space.first_value(c, t, seed)
  local w = tensors.new("f32", t.shape)
  if t.role == "a_log" then
    local columns, list = t.shape[2], {}
    for i = 1, w:numel() do list[i] = math.log(columns and (i - 1) % columns + 1 or i) end
    return w:copy(tensors.from_table(list):view(t.shape))
  elseif t.role == "dt_bias" then
    return w:fill(math.log(math.exp(0.01) - 1))
  elseif t.role == "conv" then
    local bound = 1 / math.sqrt(c.conv)
    return core.uniform(w, seed, "init/" .. t.name, 0, -bound, bound)
  end
end

return state_space
