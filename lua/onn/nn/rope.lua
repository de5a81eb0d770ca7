-- Rotary position embedding: frequencies by the config's scaling, and tables of cosines and sines that grow on demand.
-- Formulas as in transformers' modeling_rope_utils (default, linear, dynamic, llama3, yarn, longrope).
local core = require "onn.core.ops"
local tensors = require "onn.core.tensor"
local values = require "onn.arch.config"

local rope = {}

local function default(base, dims)
  local inv = {}
  for i = 0, dims / 2 - 1 do inv[i + 1] = 1 / base ^ (2 * i / dims) end
  return inv, 1
end

local scalings = {}
function scalings.default(p) return default(p.theta, p.dims) end
-- Turns the share of the pairs that comes first, at the speeds that they have in the whole head; the others stand still.
function scalings.proportional(p)
  local inv = default(p.theta, p.dims)
  for i = 1, #inv do inv[i] = i <= p.turned and inv[i] / (p.factor or 1) or 0 end
  return inv, 1
end
function scalings.linear(p)
  local inv = default(p.theta, p.dims)
  for i = 1, #inv do inv[i] = inv[i] / p.factor end
  return inv, 1
end
function scalings.dynamic(p, length)
  local l = math.max(length, p.positions)
  return default(p.theta * (p.factor * l / p.positions - (p.factor - 1)) ^ (p.dims / (p.dims - 2)), p.dims)
end
function scalings.llama3(p)
  local inv = default(p.theta, p.dims)
  local low, high = p.original / p.low_freq_factor, p.original / p.high_freq_factor
  for i = 1, #inv do
    local wave = 2 * math.pi / inv[i]
    if wave > low then
      inv[i] = inv[i] / p.factor
    elseif wave >= high then
      local smooth = (p.original / wave - p.low_freq_factor) / (p.high_freq_factor - p.low_freq_factor)
      inv[i] = (1 - smooth) * inv[i] / p.factor + smooth * inv[i]
    end
  end
  return inv, 1
end
function scalings.yarn(p)
  local inv = default(p.theta, p.dims)
  local function dimension(rotations)
    return p.dims * math.log(p.original / (rotations * 2 * math.pi)) / (2 * math.log(p.theta))
  end
  local low, high = dimension(p.beta_fast or 32), dimension(p.beta_slow or 1)
  if p.truncate ~= false then low, high = math.floor(low), math.ceil(high) end
  low, high = math.max(low, 0), math.min(high, p.dims - 1)
  if low == high then high = high + 0.001 end
  for i = 1, #inv do
    local ramp = math.min(math.max((i - 1 - low) / (high - low), 0), 1)
    inv[i] = inv[i] / p.factor * ramp + inv[i] * (1 - ramp)
  end
  local function scale(m) return p.factor <= 1 and 1 or 0.1 * m * math.log(p.factor) + 1 end
  local attention = p.attention_factor
  if not attention then
    attention = p.mscale and p.mscale_all_dim and scale(p.mscale) / scale(p.mscale_all_dim) or scale(1)
  end
  return inv, attention
end
function scalings.longrope(p, length)
  local factors = length > p.original and p.long_factor or p.short_factor
  local inv = default(p.theta, p.dims)
  for i = 1, #inv do inv[i] = inv[i] / factors[i] end
  local f = p.factor or p.positions / p.original
  local own = length > p.original and p.long_mscale or length <= p.original and p.short_mscale -- of phi 3.5's mixture
  return inv, own or p.attention_factor or (f <= 1 and 1 or math.sqrt(1 + math.log(f) / math.log(p.original)))
end

-- What the scalings are made of: the kind of each value, and what a scaling cannot do without.
local kinds = { factor = values.positive, attention_factor = values.positive, low_freq_factor = values.positive,
  high_freq_factor = values.positive, beta_fast = values.positive, beta_slow = values.positive, mscale = values.number,
  mscale_all_dim = values.number, short_mscale = values.positive, long_mscale = values.positive,
  short_factor = values.positives, long_factor = values.positives,
  original_max_position_embeddings = values.positive }
local needs = { linear = { "factor" }, dynamic = { "factor" }, llama3 = { "factor", "low_freq_factor", "high_freq_factor" },
  yarn = { "factor" }, longrope = { "short_factor", "long_factor" } }

-- Kinds and presence of everything in p that a formula uses; returns a message for the first that is wrong.
local function check(p)
  local wrong, names = {}, {}
  for name in pairs(kinds) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    if p[name] ~= nil then values.check(name, p[name], kinds[name], wrong) end
  end
  values.check("rope_theta", p.theta, values.positive, wrong)
  values.check("max_position_embeddings", p.positions, values.positive, wrong)
  values.check("original_max_position_embeddings", p.original, values.positive, wrong)
  for _, name in ipairs(needs[p.kind] or {}) do
    if p[name] == nil then wrong[#wrong + 1] = ("rotary scaling '%s' lacks '%s'"):format(p.kind, name) end
  end
  if p.kind == "llama3" and #wrong == 0 and p.low_freq_factor >= p.high_freq_factor then
    wrong[1] = ("'low_freq_factor' %g should be below 'high_freq_factor' %g"):format(p.low_freq_factor, p.high_freq_factor)
  end
  for _, name in ipairs(#wrong == 0 and needs[p.kind] or {}) do
    if type(p[name]) == "table" and #p[name] ~= p.dims / 2 then
      wrong[#wrong + 1] = ("'%s' has %d values, expected %g"):format(name, #p[name], p.dims / 2)
    end
  end
  return wrong[1]
end

-- Reads both spellings of the config (rope_parameters of transformers 5, rope_theta and rope_scaling before).
-- options: what stands where the config says nothing: theta, share (of a head that is rotated), dims (the same as a number), positions.
-- Returns parameters, or nil and what is wrong.
function rope.read(config, head_size, options)
  options = options or {}
  local wrong = {}
  local given = config.rope_parameters or config.rope_scaling or {}
  if not values.check(config.rope_parameters and "rope_parameters" or "rope_scaling", given, values.object, wrong) then
    return nil, wrong[1]
  end
  local p = {}
  for k, v in pairs(given) do p[k] = v end
  p.kind = given.rope_type or given.type or "default"
  p.theta = given.rope_theta or config.rope_theta or options.theta or 10000
  local share = given.partial_rotary_factor or config.partial_rotary_factor or options.share or 1
  if not values.check("partial_rotary_factor", share, values.share, wrong) then return nil, wrong[1] end
  if p.kind == "proportional" then
    p.dims, p.turned = head_size, math.floor(head_size * share / 2)
  else
    p.dims = options.dims or math.floor(head_size * share)
  end
  p.positions = config.max_position_embeddings or options.positions or 2048
  p.original = given.original_max_position_embeddings or config.original_max_position_embeddings or p.positions
  p.kind = ({ su = "longrope", deepseek_yarn = "yarn" })[p.kind] or p.kind
  if not scalings[p.kind] then return nil, ("rotary scaling %s is not known"):format(values.shown(p.kind)) end
  if p.dims % 2 ~= 0 or p.dims < 2 then
    return nil, ("%d dimensions of a head of %d are rotated; an even number is expected"):format(p.dims, head_size)
  end
  if p.kind == "dynamic" and p.dims < 4 then return nil, "rotary scaling 'dynamic' wants heads of at least 4 dimensions" end
  local problem = check(p)
  if problem then return nil, problem end
  return p
end

local length_dependent = { dynamic = true, longrope = true }

-- A table holder: angles:upto(length) gives {cos, sin, interleaved} for at least `length` positions; `backwards` turns the other way. A table
-- given before stays as it was while somebody holds it: sequences of other lengths may want other angles.
function rope.new(parameters, interleaved, backwards)
  local held = { capacity = 0 }
  -- A number that is the same for all lengths that are turned by the same angles.
  function held:regime_of(length)
    local kind = parameters.kind
    if not length_dependent[kind] then return 0 end
    if kind == "longrope" then return length > parameters.original and 1 or 0 end
    return length
  end
  function held:upto(length)
    local kind, regime = parameters.kind, self:regime_of(length)
    local dry = tensors.is_dry() -- its tables are its own
    if length <= self.capacity and regime == self.regime and not dry then return self.table end
    local capacity = 256
    while capacity < length do capacity = capacity * 2 end
    if kind == "longrope" and length <= parameters.original then capacity = math.min(capacity, parameters.original) end
    local inv, scale = scalings[kind](parameters, length)
    if backwards then for i = 1, #inv do inv[i] = -inv[i] end end
    local inv_freq = tensors.from_table(inv, "f32")
    local cos, sin = core.rope_table(inv_freq, capacity, scale)
    inv_freq:free()
    if dry then return { cos = cos, sin = sin, interleaved = interleaved or false } end
    tensors.keep(cos, sin)
    self.table, self.capacity, self.regime = { cos = cos, sin = sin, interleaved = interleaved or false }, capacity, regime
    return self.table
  end
  function held:free()
    if self.table then self.table.cos:free() self.table.sin:free() end
    self.table, self.capacity = nil, 0
  end
  return held
end

return rope
