-- The decoder-only block, one for all families: what a config means, which tensors it wants, and how a stage runs.
-- The residual stream is f32 whatever the products' dtype: rounding it at every block is most of bf16's error.
-- The carry holds hidden f32 (tokens, width), positions i32, starts i32 (sequences + 1), rows i64 (for dropout).
local core = require "onn.core.ops"
local linear = require "onn.nn.linear"
local ops = require "onn.ops"
local rope = require "onn.nn.rope"
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"
local values = require "onn.arch.config"

local decoder = {}

local SIZE = values.integer(1, 2 ^ 31 - 1)
-- What each value of a config must be; `needed` ones have no default. A stage is made for every layer, before the store is looked at.
local kinds = {
  { "width", SIZE, needed = true }, { "inner", SIZE, needed = true }, { "layers", values.integer(1, 10000), needed = true },
  { "heads", values.integer(1, 2 ^ 20), needed = true }, { "vocabulary", SIZE, needed = true }, { "kv_heads", values.integer(1, 2 ^ 20) },
  { "head_size", values.integer(1, 2 ^ 20) }, { "positions", SIZE }, { "eps", values.positive }, { "attention_bias", values.flag },
  { "mlp_bias", values.flag }, { "tied", values.flag },
}

local gates = { silu = "silu", swish = "silu", gelu = "gelu", gelu_new = "gelu_tanh", gelu_pytorch_tanh = "gelu_tanh", relu = "relu" }

-- Do heads and widths fit each other? Fills in what follows from the others.
local function check_heads(c, names, wrong)
  c.kv_heads = c.kv_heads or c.heads
  if not c.head_size and c.width % c.heads ~= 0 then
    wrong[#wrong + 1] = ("'%s' %d is no multiple of '%s' %d"):format(names.width, c.width, names.heads, c.heads)
  end
  if c.heads % c.kv_heads ~= 0 then
    wrong[#wrong + 1] = ("'%s' %d is no multiple of '%s' %d"):format(names.heads, c.heads, names.kv_heads, c.kv_heads)
  end
  c.head_size = c.head_size or c.width / c.heads
end

-- The window of every layer in keys, 0 = none.
local function windows(config, family, c, wrong)
  local list = {}
  for layer = 0, c.layers - 1 do
    local window = family.window and family.window(config, layer) or 0
    if window ~= 0 and not values.check("sliding_window", window, SIZE, wrong) then break end
    list[layer] = window
  end
  return list
end

-- Fills in c; `wrong` gets what is missing or does not fit.
local function read(config, family, c, wrong)
  for key, name in pairs(family.config) do
    c[key] = config[name]
    if c[key] == nil then c[key] = family.defaults[key] end
  end
  for _, kind in ipairs(kinds) do
    local key = kind[1]
    if kind.needed or c[key] ~= nil then values.check(family.config[key], c[key], kind[2], wrong) end
  end
  if config.layer_types ~= nil then values.check("layer_types", config.layer_types, values.list, wrong) end
  if config.max_window_layers ~= nil then values.check("max_window_layers", config.max_window_layers, values.number, wrong) end
  if #wrong > 0 then return end
  check_heads(c, family.config, wrong)
  c.gate = gates[c.activation]
  if not c.gate then
    wrong[#wrong + 1] = ("'%s' %s is not known"):format(family.config.activation, values.shown(c.activation))
  end
  if #wrong > 0 then return end
  local angles, problem = rope.read(config, c.head_size)
  if not angles then wrong[1] = problem end
  c.rope, c.bias, c.qk_norm, c.fused, c.names, c.family = angles, family.bias(c), family.qk_norm, family.fused, family.names, family.name
  c.windows = windows(config, family, c, wrong)
end

-- Sizes and switches of a model, from its config.json through the family's names.
-- Returns the description, or nil and a list of what is missing or wrong.
function decoder.describe(config, family)
  local c, wrong = {}, {}
  read(config, family, c, wrong)
  for i, text in ipairs(wrong) do wrong[i] = "config.json: " .. text end
  if #wrong > 0 then return nil, wrong end
  return c
end

-- The linear layers of one block: role -> {name (relative), out, in, bias}.
local function products(c)
  local q, kv, n = c.heads * c.head_size, c.kv_heads * c.head_size, c.names
  local list = {}
  local function add(role, name, out, into, bias)
    list[#list + 1] = { role = role, name = name, out = out, into = into, bias = bias or false }
  end
  if c.fused and c.fused.qkv then
    add("qkv", c.fused.qkv, q + 2 * kv, c.width)
  else
    add("q", n.q, q, c.width, c.bias.q)
    add("k", n.k, kv, c.width, c.bias.k)
    add("v", n.v, kv, c.width, c.bias.v)
  end
  add("o", n.o, c.width, q, c.bias.o)
  if c.fused and c.fused.gate_up then
    add("gate_up", c.fused.gate_up, 2 * c.inner, c.width)
  else
    add("gate", n.gate, c.inner, c.width, c.bias.gate)
    add("up", n.up, c.inner, c.width, c.bias.up)
  end
  add("down", n.down, c.width, c.inner, c.bias.down)
  return list
end

-- Stages of the model: each {name, kind, index, layers = products, tensors = {{name, shape, role, vector}}}.
function decoder.stages(c)
  local n, stages = c.names, {}
  local function weight(name, role, shape) return { name = name .. ".weight", role = role, shape = shape, vector = #shape == 1 } end
  stages[1] = { name = n.embed, kind = "embedding", layers = {}, tensors = { weight(n.embed, "embed", { c.vocabulary, c.width }) } }
  for layer = 0, c.layers - 1 do
    local prefix = n.block:format(layer)
    local stage = { name = prefix, kind = "block", index = layer, layers = {}, tensors = {} }
    local function add(t) stage.tensors[#stage.tensors + 1] = t end
    add(weight(prefix .. "." .. n.norm1, "norm1", { c.width }))
    for _, p in ipairs(products(c)) do
      local name = prefix .. "." .. p.name
      stage.layers[#stage.layers + 1] = { role = p.role, name = name, out = p.out, into = p.into }
      add(weight(name, p.role, { p.out, p.into }))
      if p.bias then add { name = name .. ".bias", role = p.role .. "_bias", shape = { p.out }, vector = true } end
    end
    if c.qk_norm then
      add(weight(prefix .. "." .. n.q_norm, "q_norm", { c.head_size }))
      add(weight(prefix .. "." .. n.k_norm, "k_norm", { c.head_size }))
    end
    add(weight(prefix .. "." .. n.norm2, "norm2", { c.width }))
    stages[#stages + 1] = stage
  end
  local head = { name = n.head, kind = "head", layers = {}, tensors = { weight(n.final_norm, "final_norm", { c.width }) } }
  if c.tied then head.shares = { head = n.embed .. ".weight" } end
  if not c.tied then head.tensors[2] = weight(n.head, "head", { c.vocabulary, c.width }) end
  stages[#stages + 1] = head
  return stages
end

-- The first carry of a batch {ids, positions, starts}: i32 tensors (tokens), (tokens), (sequences + 1).
function decoder.start(model, batch)
  local longest = batch.longest or batch.ids:size(1)
  return { ids = batch.ids, positions = batch.positions, starts = batch.starts, angles = model.angles:upto(longest) }
end

local function heads(x, count, size) return ops.view(x, { x:size(1), count, size }) end

-- Queries and keys stay f32 until they are turned: rounding them before and after is a good part of bf16's error.
local function attention(c, stage, x, carry, ctx)
  local w = stage.weights
  local q, k, v
  if w.qkv then
    local kv = c.kv_heads * c.head_size
    q, k, v = ops.split(linear(w.qkv, x, ctx, "f32"), { c.heads * c.head_size, kv, kv })
    if ctx.dtype ~= "f32" then v = ops.to(v, ctx.dtype) end
  else
    q, k, v = linear(w.q, x, ctx, "f32"), linear(w.k, x, ctx, "f32"), linear(w.v, x, ctx)
  end
  q, k, v = heads(q, c.heads, c.head_size), heads(k, c.kv_heads, c.head_size), heads(v, c.kv_heads, c.head_size)
  if w.q_norm then q, k = ops.rms_norm(q, w.q_norm, c.eps), ops.rms_norm(k, w.k_norm, c.eps) end
  q, k = ops.rope(q, carry.angles, carry.positions, ctx.dtype), ops.rope(k, carry.angles, carry.positions, ctx.dtype)
  local window, scale = c.windows[stage.index], 1 / math.sqrt(c.head_size)
  local y
  if ctx.cache then
    y = ctx.cache:attend(stage.index, q, k, v, window, scale)
  else
    y = ops.attention(q, k, v, { starts = carry.starts, causal = true, window = window, scale = scale })
  end
  return linear(w.o, ops.view(y, { x:size(1), c.heads * c.head_size }), ctx, "f32")
end

local function mlp(c, stage, x, ctx)
  local w = stage.weights
  local gate, up
  if w.gate_up then
    gate, up = ops.split(linear(w.gate_up, x, ctx), { c.inner, c.inner })
  else
    gate, up = linear(w.gate, x, ctx), linear(w.up, x, ctx)
  end
  return linear(w.down, ops.gate(gate, up, c.gate), ctx, "f32")
end

local forward = {}

-- Rows of an embedding in f32; it is a tensor, or lies in its file.
local function rows_of(table, ids)
  if type(table) == "table" then return table.rows(ids):to "f32" end
  return ops.embedding(table, ids, "f32")
end

function forward.embedding(_, stage, carry)
  carry.hidden = rows_of(stage.weights.embed, carry.ids)
  return carry
end

function forward.block(c, stage, carry, ctx)
  local x, w = carry.hidden, stage.weights
  local h = ops.add(x, attention(c, stage, ops.rms_norm(x, w.norm1, c.eps, ctx.dtype), carry, ctx))
  carry.hidden = ops.add(h, mlp(c, stage, ops.rms_norm(h, w.norm2, c.eps, ctx.dtype), ctx))
  return carry
end

local function copy(carry)
  local out = {}
  for k, v in pairs(carry) do out[k] = v end
  return out
end

local function head_input(c, stage, carry, ctx)
  local x = ctx.only and ctx.only(carry.hidden) or carry.hidden
  return ops.rms_norm(x, stage.weights.final_norm, c.eps, ctx.dtype)
end

-- With ctx.labels: carry.nll (tokens), the loss of each; else carry.logits f32 (tokens, vocabulary), of ctx.only's rows if given.
function forward.head(c, stage, carry, ctx)
  local x, weight = head_input(c, stage, carry, ctx), stage.weights.head
  carry.last_hidden = x
  if ctx.labels then
    carry.nll = ops.head_loss(x, weight, nil, ctx.labels, carry.starts, ctx.loss_scale, 1)
  elseif ctx.decode then
    carry.logits = core.linear_decode(x, weight, nil, nil, nil, nil, "f32")
  else
    carry.logits = (ops.linear(x, weight, nil, nil, nil, nil, nil, "f32"))
  end
  return carry
end

-- The head in steps, for a weight that comes in row tiles: the same bits as forward.head.
local head = {}
decoder.head = head

function head.begin(c, stage, carry, ctx)
  local out = copy(carry)
  local x = head_input(c, stage, carry, ctx)
  out.last_hidden = x
  if ctx.labels then
    out.loss = core.head_begin(x, c.vocabulary, tape.tracked(x))
  else
    out.logits = tensors.new("f32", { x:size(1), c.vocabulary })
  end
  return out
end

-- weight: the rows of the head from `first` on, counted from 0.
function head.part(carry, ctx, weight, first)
  local x = carry.last_hidden
  if ctx.labels then return core.head_part(carry.loss, x, weight, ctx.labels, first, 1) end
  local columns = carry.logits:narrow(2, first + 1, weight:size(1))
  if ctx.decode then
    core.linear_decode(x, weight, nil, nil, nil, nil, "f32", columns)
  else
    core.linear(x, weight, nil, nil, nil, nil, nil, "f32", columns)
  end
end

function head.finish(carry, ctx)
  local out = copy(carry)
  if ctx.labels then out.nll, out.loss = ops.head_end(carry.last_hidden, carry.loss, ctx.labels, ctx.loss_scale, 1), nil end
  return out
end

-- Runs one stage: carry in, carry out (a new table; the old one stays as it was).
function decoder.forward(c, stage, carry, ctx)
  return forward[stage.kind](c, stage, copy(carry), ctx)
end

return decoder
