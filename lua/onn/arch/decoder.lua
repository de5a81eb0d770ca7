-- The decoder-only model, one block for all families: what a config means, which tensors it wants, and how a stage runs. A block is a
-- mixer (attention or another of arch/parts) and a feed-forward part, each with its norms and its way into the residual stream.
-- The residual stream is f32 whatever the products' dtype: rounding it at every block is most of bf16's error.
-- The carry holds hidden f32 (tokens, width), positions i32, starts i32 (sequences + 1), rows i64 (for dropout).
local copied = require "onn.arch.copied"
local core = require "onn.core.ops"
local linear = require "onn.nn.linear"
local norm = require "onn.arch.parts.norm"
local ops = require "onn.ops"
local sizes = require "onn.arch.sizes"
local tensors = require "onn.core.tensor"
local vocabulary_head = require "onn.arch.vocabulary_head"

local decoder = {}

-- Sizes and switches of a model, from its config.json through the family's names (onn.arch.sizes).
-- Returns the description, or nil and a list of what is missing or wrong.
decoder.describe = sizes.describe

local function part(kind) return require("onn.arch.parts." .. kind) end

-- Collects a stage's tensors: add.linear(role, name, out, into, bias) for a product, which an adapter may sit on;
-- add.matrix and add.vector(role, name, shape, more) for the rest, a vector being what always rests in memory in f32. more.first: its first
-- value, function(tensor, seed).
local function collector(stage, prefix, transposed)
  local add = {}
  local function put(role, name, shape, more)
    local t = { name = prefix .. name, role = role, shape = shape }
    for k, v in pairs(more or {}) do t[k] = v end
    stage.tensors[#stage.tensors + 1] = t
    return t
  end
  function add.vector(role, name, shape, more)
    local t = put(role, name, shape, more)
    t.vector = true
    return t
  end
  -- A vector that is set, not trained.
  function add.buffer(role, name, shape) return put(role, name, shape, { vector = true, buffer = true }) end
  function add.matrix(role, name, shape, more) return put(role, name, shape, more) end
  function add.linear(role, name, out, into, bias)
    stage.layers[#stage.layers + 1] = { role = role, name = prefix .. name, out = out, into = into }
    local t = put(role, name .. ".weight", transposed and { into, out } or { out, into }, { transposed = transposed })
    if bias then add.vector(role .. "_bias", name .. ".bias", { out }) end
    return t
  end
  -- The same for a product beside an embedding or a head, whose weight rests in memory.
  function add.resident(role, name, out, into)
    stage.layers[#stage.layers + 1] = { role = role, name = prefix .. name, out = out, into = into }
    put(role, name .. ".weight", { out, into }, { vector = true })
  end
  -- The same for an expert, by its number: only adapters that name it sit on it.
  function add.expert(e)
    return { linear = function(role, ...)
      local t = add.linear(role, ...)
      t.expert, stage.layers[#stage.layers].expert = e, true
    end }
  end
  -- Matrices of all experts in one tensor, (experts, out, in) or with stored = "in_out" (experts, in, out). Those of one group are used
  -- together.
  function add.stacked(role, name, experts, out, into, group, stored)
    local in_out = stored == "in_out"
    put(role, name, in_out and { experts, into, out } or { experts, out, into }, { stacked = group, in_out = in_out })
  end
  return add
end

local function new_stage(name, kind, index) return { name = name, kind = kind, index = index, layers = {}, tensors = {} } end

local function embedding_stage(c)
  local n, stage = c.names, new_stage(c.names.embed, "embedding")
  local add = collector(stage, "")
  add.matrix("embed", n.embed .. ".weight", { c.vocabulary, c.embed_width or c.width })
  if c.learned_positions then add.matrix("position", n.position .. ".weight", { c.positions + (c.position_offset or 0), c.width }) end
  if n.embed_norm then norm.tensors(c, add, "embed_norm", n.embed_norm, c.width) end
  if c.embed_width then add.resident("project_in", n.project_in, c.width, c.embed_width) end
  return stage
end

-- The norms that a block may have: before each part, on its output, or on the sum that follows.
local block_norms = { "norm1", "norm1_out", "norm1_sum", "norm2", "norm2_out", "norm2_sum" }

-- The name of the norm `role` in a layer, nil if it has none. c.norm_names: where layers differ, those of each.
local function norm_name(c, layer, role) return (c.norm_names and c.norm_names[layer] or c.names)[role] end

local function block_stage(c, layer)
  local stage = new_stage(c.names.block:format(layer), "block", layer)
  local add = collector(stage, stage.name .. ".", c.transposed)
  stage.mixer, stage.feed = part(c.mixers[layer]), c.feeds[layer] and part(c.feeds[layer])
  if c.moe then stage.routed = { experts = c.moe.experts, per_token = c.moe.per_token } end
  local function norms(from, to)
    for k = from, to do
      local role = block_norms[k]
      local name = norm_name(c, layer, role)
      if name and (role ~= "norm2" or stage.feed) then norm.tensors(c, add, role, name, c.width) end
    end
  end
  norms(1, 1)
  stage.mixer.tensors(c, layer, add)
  norms(2, 4)
  if stage.feed then
    stage.feed.tensors(c, layer, add)
    norms(5, 6)
  end
  if c.layer_scalar then add.buffer("layer_scalar", c.names.layer_scalar, { 1 }) end
  return stage
end

local function head_stage(c)
  local n, stage = c.names, new_stage(c.names.head, "head")
  local add = collector(stage, "")
  if n.final_norm then norm.tensors(c, add, "final_norm", n.final_norm, c.width) end
  if c.embed_width then add.resident("project_out", n.project_out, c.embed_width, c.width) end
  if c.head_bias then add.vector("head_bias", n.head .. ".bias", { c.vocabulary }) end
  if c.tied then
    stage.shares = { head = n.embed .. ".weight" }
  else
    add.matrix("head", n.head .. ".weight", { c.vocabulary, c.embed_width or c.width })
  end
  return stage
end

-- Stages of the model: each {name, kind, index, layers = products, tensors = {{name, shape, role, vector}}}.
function decoder.stages(c)
  local stages = { embedding_stage(c) }
  for layer = 0, c.layers - 1 do stages[#stages + 1] = block_stage(c, layer) end
  stages[#stages + 1] = head_stage(c)
  return stages
end

-- A tensor's first value in training from nothing, where its part says so.
function decoder.first_value(_, t, seed) return t.first and t.first(t, seed) end

-- The first carry of a batch {ids, positions, starts}: i32 tensors (tokens), (tokens), (sequences + 1).
function decoder.start(model, batch)
  local longest = batch.longest or batch.ids:size(1)
  local carry = { ids = batch.ids, positions = batch.positions, starts = batch.starts,
    angles = model.angles and model.angles:upto(longest), local_angles = model.local_angles and model.local_angles:upto(longest) }
  if model.slopes then carry.slopes, carry.slopes_zero = model.slopes:upto(longest) end
  if model.sinusoids then carry.sinusoids = model.sinusoids:upto(longest) end
  if model.query_scales then carry.query_scales = model.query_scales:upto(longest) end
  return carry
end

-- Rows of an embedding in f32; it is a tensor, or lies in its file.
local function rows_of(table, ids)
  if type(table) == "table" then return table.rows(ids):to "f32" end
  return ops.embedding(table, ids, "f32")
end

local forward = {}

function forward.embedding(c, stage, carry, ctx)
  local w = stage.weights
  local x = rows_of(w.embed, carry.ids)
  if c.embed_width then x = linear(w.project_in, ctx.dtype == "f32" and x or ops.to(x, ctx.dtype), ctx, "f32") end
  if c.embed_scale then x = ops.affine(x, c.embed_scale, 0) end
  if w.position then
    local at = carry.positions
    if c.position_offset then at = core.binary(at, tensors.from_table({ c.position_offset }, "i32"), "add") end
    x = ops.add(x, rows_of(w.position, at))
  end
  if carry.sinusoids then x = ops.add(x, ops.embedding(carry.sinusoids, carry.positions, "f32")) end
  if c.names.embed_norm then x = norm.apply(c, stage, "embed_norm", x, "f32") end
  carry.hidden = x
  return carry
end

-- What comes out of a part joins the residual stream.
local function join(c, stage, x, y, number)
  if norm_name(c, stage.index, number .. "_out") then y = norm.apply(c, stage, number .. "_out", y, "f32") end
  if c.depth_scaled then -- the sum of n blocks' parts keeps the size of one
    local n = 2 * (stage.index + 1) + (number == "norm2" and 1 or 0)
    x, y = ops.affine(x, math.sqrt((n - 1) / n), 0), ops.affine(y, 1 / math.sqrt(n), 0)
  end
  if c.join_scales then
    local by = c.join_scales[stage.index][number]
    x, y = ops.affine(x, by[1], 0), ops.affine(y, by[2], 0)
  end
  if c.residual_scale then y = ops.affine(y, c.residual_scale, 0) end
  x = ops.add(x, y)
  if norm_name(c, stage.index, number .. "_sum") then x = norm.apply(c, stage, number .. "_sum", x, "f32") end
  return x
end

-- The residual stream as it goes past a part: where it is normed itself (c.normed_stream), what the norm gives.
local function stream(c, stage, number, x) return c.normed_stream and norm.apply(c, stage, number, x, "f32") or x end

local function before(c, stage, number, x, ctx)
  if norm_name(c, stage.index, number) and not c.normed_stream then return norm.apply(c, stage, number, x, ctx.dtype) end
  return ctx.dtype == "f32" and x or ops.to(x, ctx.dtype)
end

function forward.block(c, stage, carry, ctx)
  local x = stream(c, stage, "norm1", carry.hidden)
  local first = before(c, stage, "norm1", x, ctx)
  local mixed = stage.mixer.forward(c, stage, first, carry, ctx)
  if c.parallel and stage.feed then
    local second = c.names.norm2 and before(c, stage, "norm2", x, ctx) or first
    carry.hidden = join(c, stage, join(c, stage, x, mixed, "norm1"), stage.feed.forward(c, stage, second, carry, ctx), "norm2")
    return carry
  end
  local h = join(c, stage, x, mixed, "norm1")
  if stage.feed then
    h = stream(c, stage, "norm2", h)
    h = join(c, stage, h, stage.feed.forward(c, stage, before(c, stage, "norm2", h, ctx), carry, ctx, h), "norm2")
  end
  if c.layer_scalar then h = ops.mul(h, ops.view(stage.weights.layer_scalar, { 1, 1 })) end
  carry.hidden = h
  return carry
end

local function head_input(c, stage, carry, ctx)
  local x = ctx.only and ctx.only(carry.hidden) or carry.hidden
  if c.names.final_norm then
    x = norm.apply(c, stage, "final_norm", x, ctx.dtype, c.final_eps)
  else
    x = ctx.dtype ~= "f32" and ops.to(x, ctx.dtype) or ops.view(x, x:shape()) -- a handle of its own: it is freed before the carry
  end
  if c.embed_width then x = linear(stage.weights.project_out, x, ctx) end
  return x
end

forward.head, decoder.head = vocabulary_head.new {
  input = head_input,
  form = function(c, stage) return stage.weights.head_bias, c.logits_scale or 1, c.final_cap end,
  starts = function(carry) return carry.starts end,
}

-- Runs one stage: carry in, carry out (a new table; the old one stays as it was).
function decoder.forward(c, stage, carry, ctx)
  return forward[stage.kind](c, stage, copied(carry), ctx)
end

return decoder
