-- Sizes and switches of a decoder, read from a config.json through its family's names. A family (arch/families) says
--   config    which key of the config holds which size or switch (a list: the first that is there)
--   defaults  what a key has that is not there: a value, or a function of what is known
--   absent    the same, where null means something else than absence
--   only      values that a key of the config must have, for switches that are not supported
--   bias      function(c) -> {q, k, v, o, gate, up, down}
--   derive    function(c) that sets the switches of the block (see onn.arch.decoder and arch/parts)
--   window    function(c, layer) -> keys that a layer sees, nil = all
--   names     of the tensors
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
  attention_layers = values.list, layer_kinds = values.list,
  activation = values.text, position_type = values.text,
  experts = COUNT, experts_per_token = COUNT, expert_inner = SIZE, shared_experts = values.integer(0, 2 ^ 20),
  shared_inner = values.integer(0, 2 ^ 31 - 1),
  dense_layers = values.integer(0, 10000), moe_interval = COUNT, moe_offset = values.integer(0, 10000), expert_groups = COUNT,
  groups_per_token = COUNT, q_rank = SIZE, kv_rank = SIZE, nope_size = COUNT, rope_size = COUNT, value_size = COUNT,
}
for _, flag in ipairs { "attention_bias", "output_bias", "mlp_bias", "tied", "use_window", "parallel", "use_qk_norm", "alibi", "multi_query",
  "new_layout", "norm_before", "norm_affine", "use_bias", "norm_topk", "scale_by_layer", "scale_by_size", "head_bias", "gated_mlp",
  "attention_gate", "interleave", "qkv_bias", "scale_embedding", "mup" } do
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

-- Rotary angles, of full and of windowed layers where they differ (c.rope, c.local_angles).
local function read_rope(config, c, wrong)
  local given = config.rope_parameters -- has no meaning for the others
  if c.position_type == "none" or c.alibi or c.learned_positions then return end
  local options = { theta = c.rope_theta, share = c.rotary_share, dims = c.rotary_dims, positions = c.positions }
  local main, other = config, nil
  if type(given) == "table" and type(given.full_attention) == "table" then
    main = setmetatable({ rope_parameters = given.full_attention }, { __index = config })
    if type(given.sliding_attention) == "table" then
      other = setmetatable({ rope_parameters = given.sliding_attention }, { __index = config })
    end
  elseif c.local_theta then
    other = { rope_theta = c.local_theta, max_position_embeddings = c.positions }
  end
  local angles, problem = rope.read(main, c.rope_size or c.head_size, options)
  if not angles then wrong[#wrong + 1] = problem return end
  c.rope = angles
  if other then
    c.rope_of_windows, problem = rope.read(other, c.rope_size or c.head_size, { theta = c.local_theta or c.rope_theta, share = c.rotary_share,
      dims = c.rotary_dims, positions = c.positions })
    if not c.rope_of_windows then wrong[#wrong + 1] = problem return end
    c.local_rope = each_layer(c, function(layer) return c.windows[layer] ~= 0 end)
  end
end

local function read(config, family, c, names, wrong)
  read_values(config, family, c, names, wrong)
  check_only(config, family, wrong)
  if #wrong > 0 then return end
  check_heads(c, names, wrong)
  if c.activation then c.activation_op = sizes.activation(c.activation, names.activation, wrong) end
  for _, key in ipairs { "layer_types", "rope_layers", "mlp_types" } do check_list(c, names, key, wrong) end
  if #wrong > 0 then return end
  c.names, c.family, c.bias, c.gated, c.norm = {}, family.name, family.bias and family.bias(c) or {}, family.gated ~= false, family.norm or "rms"
  for k, v in pairs(family.names) do c.names[k] = v or nil end
  if family.derive then family.derive(c, wrong, config) end
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
function sizes.describe(config, family)
  local c, names, wrong = {}, {}, {}
  read(config, family, c, names, wrong)
  for i, text in ipairs(wrong) do wrong[i] = "config.json: " .. text end
  if #wrong > 0 then return nil, wrong end
  return c
end

sizes.each_layer = each_layer

return sizes
