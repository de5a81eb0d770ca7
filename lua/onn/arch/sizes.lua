-- Sizes and switches of a decoder, read from a config.json through its family's names. A family (arch/families) says
--   config    which key of the config holds which size or switch (a list: the first that is there)
--   defaults  what a key has that is not there: a value, or a function of what is known
--   absent    the same, where null means something else than absence
--   only      values that a key of the config must have, for switches that are not supported
--   bias      function(c) -> {q, k, v, o, gate, up, down}
--   derive    function(c, wrong, config, store) that sets the switches of the block (see onn.arch.decoder and arch/parts)
--   window    function(c, layer) -> keys that a layer sees, nil = all
--   names     of the tensors
--   aliases   other names of a block and its products, by role, which adapters may have
local rope = require "onn.nn.rope"
local values = require "onn.arch.config"

local sizes = {}

local SIZE, COUNT = values.integer(1, 2 ^ 31 - 1), values.integer(1, 2 ^ 20)
-- What each value must be; what is not listed here must be a number.
local kinds = {
  layers = values.integer(1, 10000), heads = COUNT, kv_heads = COUNT, head_size = COUNT, width = SIZE, inner = SIZE, vocabulary = SIZE,
  positions = SIZE, embed_width = SIZE, rotary_dims = COUNT, eps = values.positive, rope_theta = values.positive,
  attention_cap = values.positive, final_cap = values.positive, query_scalar = values.positive, clip_qkv = values.positive,
  local_theta = values.positive, rotary_share = values.share, window_size = values.integer(0, 2 ^ 31 - 1), max_window_layers = values.number,
  window_pattern = COUNT, rope_interval = COUNT,
  layer_types = values.list, dense_list = values.list, method = values.text,
  rope_layers = values.list, window_types = values.list, mlp_types = values.list, moe_layers = values.list,
  attention_layers = values.list, layer_kinds = values.list, layer_heads = values.list, layer_thetas = values.list,
  activation = values.text, position_type = values.text,
  experts = COUNT, experts_per_token = COUNT, expert_inner = SIZE, shared_experts = values.integer(0, 2 ^ 20),
  shared_inner = values.integer(0, 2 ^ 31 - 1),
  dense_layers = values.integer(0, 10000), moe_interval = COUNT, moe_offset = values.integer(0, 10000), expert_groups = COUNT,
  expert_count = values.integer(0, 2 ^ 20), attention_interval = COUNT, attention_offset = values.integer(0, 10000),
  delta_key_heads = COUNT, delta_heads = COUNT, delta_key_size = COUNT, delta_size = COUNT, conv = values.integer(1, 16),
  inner_step = SIZE, inner_factor = values.positive, pattern = values.text,
  groups_per_token = COUNT, dense_inner = SIZE, chunk_size = SIZE, prefix_pattern = COUNT, combination = values.text,
  selection = values.text, floor_scale = values.positive, global_head_size = COUNT,
  global_kv_heads = COUNT, q_rank = SIZE, kv_rank = SIZE, nope_size = COUNT, rope_size = COUNT, value_size = COUNT,
}
for _, flag in ipairs { "attention_bias", "output_bias", "mlp_bias", "tied", "use_window", "parallel", "use_qk_norm", "alibi", "multi_query",
  "new_layout", "norm_before", "norm_affine", "use_bias", "norm_topk", "scale_by_layer", "scale_by_size", "head_bias", "gated_mlp",
  "attention_gate", "interleave", "qkv_bias", "scale_embedding", "mup",
  "post_norm", "temperature_tuning", "keys_are_values", "with_experts",
  "conv_bias", "adjust", "expert_bias", "gate_norm",
  "norm_before_gate", "negative", "use_gate", "use_sandwich" } do
  kinds[flag] = values.flag
end

local needed = { "width", "inner", "layers", "heads", "vocabulary" }

local activations = { silu = "silu", swish = "silu", gelu = "gelu", gelu_python = "gelu", gelu_new = "gelu_tanh", gelu_fast = "gelu_tanh",
  gelu_pytorch_tanh = "gelu_tanh", gelu_tanh = "gelu_tanh", relu = "relu", relu2 = "relu2", quick_gelu = "quick_gelu", xielu = "xielu" }

-- The name that a key has in this config: of several, the first that is there.
local function name_of(config, given)
  if type(given) ~= "table" then return given end
  for _, name in ipairs(given) do if config[name] ~= nil then return name end end
  return given[1]
end

-- Values by the family's names, their kinds checked.
local function read_values(config, family, c, names, wrong)
  for key, given in pairs(family.config) do
    local name = name_of(config, given)
    names[key], c[key] = name, config[name]
  end
  local later = {}
  for key, value in pairs(family.defaults) do
    if c[key] == nil then if type(value) == "function" then later[key] = value else c[key] = value end end
  end
  for _, key in ipairs(needed) do
    if c[key] == nil and not later[key] then values.check(names[key] or key, nil, kinds[key], wrong) end
  end
  local keys = {}
  for key in pairs(c) do if names[key] then keys[#keys + 1] = key end end
  table.sort(keys)
  for _, key in ipairs(keys) do
    if config[names[key]] ~= nil then values.check(names[key], c[key], kinds[key] or values.number, wrong) end
  end
  if #wrong > 0 then return end
  for key, value in pairs(later) do if c[key] == nil then c[key] = value(c) end end
end

local function check_only(config, family, wrong)
  for name, allowed in pairs(family.only or {}) do
    local value = config[name]
    if type(allowed) == "function" and not allowed(value) or type(allowed) ~= "function" and value ~= nil and value ~= allowed then
      wrong[#wrong + 1] = ("'%s' = %s is not supported for %s"):format(name, values.shown(value), family.name)
    end
  end
end

-- Do heads and widths fit each other? Fills in what follows from the others.
local function check_heads(c, names, wrong)
  c.kv_heads = c.kv_heads or c.heads
  if not c.head_size and c.width % c.heads ~= 0 then
    wrong[#wrong + 1] = ("'%s' %d is no multiple of '%s' %d"):format(names.width, c.width, names.heads, c.heads)
  end
  if c.heads % c.kv_heads ~= 0 then
    wrong[#wrong + 1] = ("'%s' %d is no multiple of '%s' %d"):format(names.heads, c.heads, names.kv_heads or "kv heads", c.kv_heads)
  end
  c.head_size = c.head_size or c.width / c.heads
end

-- The activation's operation; appends to `wrong` if there is none.
function sizes.activation(name, key, wrong)
  local op = activations[name]
  if not op then wrong[#wrong + 1] = ("'%s' %s is not known"):format(key, values.shown(name)) end
  return op
end

-- A list with a value for every layer, from a function of it.
local function each_layer(c, f)
  local list = {}
  for layer = 0, c.layers - 1 do list[layer] = f(layer) end
  return list
end

local function check_list(c, names, key, wrong)
  local list = c[key]
  if list and #list < c.layers then
    wrong[#wrong + 1] = ("'%s' has %d entries for %d layers"):format(names[key], #list, c.layers)
  end
end

-- The config with another base of its rotary angles.
local function with_theta(config, theta)
  local given, copy = config.rope_parameters or config.rope_scaling, {}
  for k, v in pairs(type(given) == "table" and given or {}) do copy[k] = v end
  copy.rope_theta = theta
  return setmetatable({ rope_parameters = copy }, { __index = config })
end

-- Of layers with bases of their own (0: not turned): the config of the first base, and of the second if there is one.
local function by_thetas(config, c, wrong)
  local found = {}
  for layer = 1, c.layers do
    local theta = c.layer_thetas[layer]
    if not values.check("layer_rope_theta", theta, values.number, wrong) then return config end
    if theta ~= 0 and not found[theta] then found[#found + 1], found[theta] = theta, true end
  end
  if #found > 2 then wrong[#wrong + 1] = "more than two bases of rotary angles are not supported" end
  c.rotated = each_layer(c, function(layer) return c.layer_thetas[layer + 1] ~= 0 end)
  c.local_rope = each_layer(c, function(layer) return c.layer_thetas[layer + 1] == found[2] end)
  return found[1] and with_theta(config, found[1]) or config, found[2] and with_theta(config, found[2])
end

-- Rotary angles, of full and of windowed layers where they differ (c.rope, c.local_angles).
local function read_rope(config, c, wrong)
  local given = config.rope_parameters -- has no meaning for the others
  if c.position_type == "none" or c.alibi or c.learned_positions or c.sinusoids then return end
  local options = { theta = c.rope_theta, share = c.rotary_share, dims = c.rotary_dims, positions = c.positions }
  local main, other = config, nil
  if type(given) == "table" and type(given.full_attention) == "table" then
    main = setmetatable({ rope_parameters = given.full_attention }, { __index = config })
    if type(given.sliding_attention) == "table" then
      other = setmetatable({ rope_parameters = given.sliding_attention }, { __index = config })
    end
  elseif type(given) == "table" and type(given.sliding_attention) == "table" then -- full layers are not turned
    main = setmetatable({ rope_parameters = given.sliding_attention }, { __index = config })
  elseif c.layer_thetas then
    main, other = by_thetas(config, c, wrong)
  elseif c.local_theta then
    other = { rope_theta = c.local_theta, max_position_embeddings = c.positions }
  end
  local angles, problem = rope.read(main, c.rope_size or c.main_head_size or c.head_size, options)
  if not angles then wrong[#wrong + 1] = problem return end
  c.rope = angles
  if other then
    options.theta = c.local_theta or c.rope_theta
    c.rope_of_windows, problem = rope.read(other, c.rope_size or c.local_head_size or c.head_size, options)
    if not c.rope_of_windows then wrong[#wrong + 1] = problem return end
    c.local_rope = c.local_rope or each_layer(c, function(layer) return c.windows[layer] ~= 0 end)
  end
end

local function read(config, family, c, names, wrong, store)
  read_values(config, family, c, names, wrong)
  check_only(config, family, wrong)
  if #wrong > 0 then return end
  check_heads(c, names, wrong)
  if c.activation then c.activation_op = sizes.activation(c.activation, names.activation, wrong) end
  for _, key in ipairs { "layer_types", "rope_layers", "mlp_types", "layer_heads", "layer_thetas" } do check_list(c, names, key, wrong) end
  if #wrong > 0 then return end
  c.names, c.family, c.bias, c.gated, c.norm = {}, family.name, family.bias and family.bias(c) or {}, family.gated ~= false, family.norm or "rms"
  for k, v in pairs(family.names) do c.names[k] = v or nil end
  c.aliases = family.aliases
  if family.derive then family.derive(c, wrong, config, store) end
  if #wrong > 0 then return end
  c.mixers = c.mixers or each_layer(c, function() return "attention" end)
  c.feeds = c.feeds or each_layer(c, function() return "mlp" end)
  c.windows = each_layer(c, function(layer)
    return family.window and family.window(c, layer) or 0
  end)
  read_rope(config, c, wrong)
  local scale = c.scale or 1 / math.sqrt(c.head_size)
  if c.scale_by_yarn and c.rope and c.rope.kind ~= "default" and c.rope.mscale_all_dim and c.rope.factor then
    scale = scale * (0.1 * c.rope.mscale_all_dim * math.log(math.max(c.rope.factor, 1)) + 1) ^ 2
  end
  c.scales = c.scales or each_layer(c, function() return scale end)
  c.rotated = c.rotated or each_layer(c, function() return c.rope ~= nil end)
end

-- Returns the description, or nil and a list of what is missing or wrong.
function sizes.describe(config, family, store)
  local c, names, wrong = {}, {}, {}
  read(config, family, c, names, wrong, store)
  for i, text in ipairs(wrong) do wrong[i] = "config.json: " .. text end
  if #wrong > 0 then return nil, wrong end
  return c
end

sizes.each_layer = each_layer

-- Types of layers: attention in every `interval`th, else linear_attention.
function sizes.every(c, interval)
  local list = {}
  for layer = 1, c.layers do list[layer] = layer % interval == 0 and "full_attention" or "linear_attention" end
  return list
end

-- The sizes of a gated delta net (parts/gated_delta), from c.delta_key_heads and the others.
function sizes.delta(c, wrong)
  local d = { key_heads = c.delta_key_heads, heads = c.delta_heads, key_size = c.delta_key_size, size = c.delta_size, conv = c.conv,
    stored = c.delta_stored, eps = c.eps, beta_scale = 1 }
  if d.heads % d.key_heads ~= 0 then
    wrong[#wrong + 1] = ("%d heads of values are no multiple of %d heads of keys"):format(d.heads, d.key_heads)
  end
  if c.activation_op ~= "silu" then wrong[#wrong + 1] = ("the activation '%s' is not supported here"):format(c.activation) end
  return d
end

-- The mixer of every layer, from c.layer_types: `part_of` says which part another type than attention is; unknown ones go to `wrong`.
function sizes.mixers(c, part_of, wrong)
  return each_layer(c, function(layer)
    local kind = c.layer_types[layer + 1]
    local part = (kind == "full_attention" or kind == "attention" or kind == "sliding_attention" and c.window_size) and "attention" or part_of[kind]
    if not part then wrong[#wrong + 1] = ("layer %d is of the type %s, which is not known"):format(layer, values.shown(kind)) end
    return part
  end)
end

return sizes
