-- Sizes of selective state-space mixers (parts/mamba, parts/mamba2), read from a config.json by the names that a family gives them.
local values = require "onn.arch.config"

local selective = {}

local SIZE, COUNT = values.integer(1, 2 ^ 31 - 1), values.integer(1, 2 ^ 20)
local kinds = {
  { "states", COUNT, needed = true }, { "conv", values.integer(1, 16), needed = true }, { "bias", values.flag }, { "conv_bias", values.flag },
  { "out_bias", values.flag }, { "expand", values.positive }, { "inner", SIZE }, { "heads", COUNT }, { "head_size", COUNT },
  { "groups", COUNT }, { "norm_eps", values.positive }, { "low", values.positive },
}

-- Keys that are looked at here to say so: they tell how first weights are made, which kernels run, or that the residual stream is f32.
local idle = { "time_step_min", "time_step_max", "time_step_floor", "time_step_scale", "time_step_init_scheme", "time_step_rank",
  "use_associative_scan", "use_mambapy", "chunk_size", "mamba_chunk_size", "residual_in_fp32", "mamba_ssm_cache_dtype" }

-- The limits of time steps: {low, high}; high may be infinite, which JSON has no number for.
local function limits(given, wrong)
  if given == nil then return 0, math.huge end
  local low, high = type(given) == "table" and given[1], type(given) == "table" and given[2]
  if type(low) ~= "number" or not (low >= 0) then wrong[#wrong + 1] = "'time_step_limit' should be two numbers" return end
  if type(high) ~= "number" or high > 3e38 then return low, math.huge end
  if not (high >= low) then wrong[#wrong + 1] = "'time_step_limit' should be two numbers, the larger one last" end
  return low, high
end

-- Heads and their sizes, if they fit.
local function complete_heads(s, names, config, wrong)
  if s.head_size == "auto" and values.check(names.heads, s.heads, COUNT, wrong) then s.head_size = s.inner / s.heads end
  if not values.check(names.heads, s.heads, COUNT, wrong) or not values.check(names.head_size, s.head_size, COUNT, wrong) then return end
  if not names.inner and not names.expand then s.inner = s.heads * s.head_size end
  if s.heads * s.head_size ~= s.inner then
    wrong[#wrong + 1] = ("'%s' %d times '%s' %d is not the inner width %g"):format(names.heads, s.heads, names.head_size, s.head_size, s.inner)
  elseif s.heads % s.groups ~= 0 then
    wrong[#wrong + 1] = ("'%s' %d is no multiple of '%s' %d"):format(names.heads, s.heads, names.groups, s.groups)
  end
  local low, high = limits(config.time_step_limit, wrong)
  s.low, s.high = s.low or low, high
end

-- The mixer's sizes in a table, its problems appended to `wrong`. width: the model's. given {kind = "mamba" or "mamba2", config = {states, conv,
-- expand, inner, heads, head_size, groups, rank, bias, conv_bias, activation, low = their keys}, defaults}; without inner and expand the
-- width follows from the heads.
function selective.describe(config, given, width, wrong)
  local s, names, before = { kind = given.kind, inner_norm = given.inner_norm, gate_norm = "after" }, given.config, #wrong
  for _, key in ipairs(idle) do local _ = config[key] end
  for key, name in pairs(names) do
    s[key] = config[name]
    if s[key] == nil then s[key] = given.defaults[key] end
  end
  for _, kind in ipairs(kinds) do
    local key = kind[1]
    if (kind.needed or s[key] ~= nil) and s[key] ~= "auto" then values.check(names[key] or key, s[key], kind[2], wrong) end
  end
  if #wrong > before then return s end
  s.inner = s.inner or s.expand and s.expand * width or width
  if s.inner ~= math.floor(s.inner) then wrong[#wrong + 1] = ("'%s' %g gives no whole width"):format(names.expand, s.expand) end
  if s.out_bias == nil then s.out_bias = s.bias end
  if given.kind == "mamba2" then
    complete_heads(s, names, config, wrong)
  else
    if s.rank == nil or s.rank == "auto" then s.rank = math.ceil(width / 16) end
    values.check(names.rank, s.rank, COUNT, wrong)
  end
  if s.activation ~= "silu" and s.activation ~= "swish" then
    wrong[#wrong + 1] = ("'%s' %s is not known"):format(names.activation, values.shown(s.activation))
  end
  return s
end

return selective
