-- What a stage of a net for images is made of: nodes {kind, ...}, run one after another on x f32 (n, c, h, w), (n, c) behind "flatten", or
-- rows (n, t, c) behind "tokens".
-- A node of many has its parts as lists of nodes: residual {body, shortcut}, squeeze {body}, concat {body}, pixels {body}, attention {q, k, v
-- or all, out}.
local convolve = require "onn.nn.conv"
local core = require "onn.core.ops"
local linear = require "onn.nn.linear"
local ops = require "onn.ops"
local tensors = require "onn.core.tensor"

local layers, run = {}, {}

-- x through a list of nodes. Batch norms take their batch's statistics where ctx.training meets a stage with batch_statistics.
function layers.run(nodes, x, stage, ctx)
  for _, node in ipairs(nodes) do x = run[node.kind](node, x, stage, ctx) end
  return x
end

function run.conv(node, x, stage, ctx) return convolve(stage.weights[node.name], x, ctx, node) end
function run.linear(node, x, stage, ctx) return linear(stage.weights[node.name], x, ctx) end
function run.activation(node, x) return ops[node.name](x) end
function run.pool(node, x) return ops.pool(x, node) end

local one

local function count(tracked)
  one = one or tensors.keep(tensors.from_table({ 1 }, "i64"))
  local n = tracked:view { 1 }
  core.binary(n, one, "add", n)
end

function run.norm(node, x, stage, ctx)
  local w, name = stage.weights, node.name
  local batch = ctx.training and stage.batch_statistics or false
  local update = batch and not ctx.repeated
  if batch and x:numel() == x:size(2) then
    error(("'%s': a batch norm in training needs more than one value per channel; take larger images or batches"):format(name), 0)
  end
  if update and w[name .. ".num_batches_tracked"] then count(w[name .. ".num_batches_tracked"]) end
  return (ops.batch_norm(x, w[name .. ".weight"], w[name .. ".bias"], w[name .. ".running_mean"], w[name .. ".running_var"],
    { eps = node.eps, momentum = node.momentum, batch = batch, update = update }))
end

-- Over the last dimension of rows.
function run.layer_norm(node, x, stage)
  return (ops.layer_norm(x, stage.weights[node.name .. ".weight"], stage.weights[node.name .. ".bias"], node.eps))
end

-- The mean of each channel: (n, c, h, w) -> (n, c, 1, 1), or -> (n, c).
local function mean(x, shape)
  return ops.view(ops.mean(ops.view(x, { x:size(1), x:size(2), x:size(3) * x:size(4) })), shape)
end
function run.average(_, x) return mean(x, { x:size(1), x:size(2) }) end
function run.adaptive_pool(node, x)
  if x:size(3) == node.size and x:size(4) == node.size then return x end
  return ops.adaptive_pool(x, node.size, node.size)
end
function run.flatten(_, x) return ops.view(x, { x:size(1), x:numel() / x:size(1) }) end

function run.residual(node, x, stage, ctx)
  local y = layers.run(node.body, x, stage, ctx)
  y = ops.add(y, node.shortcut and layers.run(node.shortcut, x, stage, ctx) or x)
  return node.after and ops[node.after](y) or y
end

-- x times what the body makes of its channels' means (arXiv 1709.01507).
function run.squeeze(node, x, stage, ctx)
  return ops.mul(x, layers.run(node.body, mean(x, { x:size(1), x:size(2), 1, 1 }), stage, ctx))
end

function run.concat(node, x, stage, ctx) return ops.cat(x, layers.run(node.body, x, stage, ctx), 2) end

-- (n, c, h, w) -> (n, h w, c): a row for each pixel.
local function pixel_rows(x)
  return ops.contiguous(ops.transpose(ops.view(x, { x:size(1), x:size(2), x:size(3) * x:size(4) }), 2, 3))
end

-- The body sees rows.
function run.pixels(node, x, stage, ctx)
  local n, h, w = x:size(1), x:size(3), x:size(4)
  local y = layers.run(node.body, pixel_rows(x), stage, ctx)
  return ops.view(ops.contiguous(ops.transpose(y, 2, 3)), { n, y:size(3), h, w })
end

-- Rows of pixels behind learned ones, which are the same for every image, and on all of them what their places add (arXiv 2010.11929).
function run.tokens(node, x, stage)
  local w, n, c = stage.weights, x:size(1), x:size(2)
  local rows = pixel_rows(x)
  for k = #node.learned, 1, -1 do
    rows = ops.cat(ops.add(tensors.zeros("f32", { n, 1, c }), w[node.learned[k]]), rows, 2)
  end
  local places = w[node.places]
  if places:size(2) ~= rows:size(2) then
    error(("'%s' is for %d patches, the images have %d"):format(node.places, places:size(2) - #node.learned, rows:size(2) - #node.learned), 0)
  end
  return ops.add(rows, places)
end

-- The first of each image's rows: (n, t, c) -> (n, c).
function run.first(_, x) return ops.contiguous(ops.select(x, 2, 1)) end

-- The first of each image's rows and the mean of those behind the learned ones: (n, t, c) -> (n, 2 c).
function run.first_and_mean(node, x)
  local n, t, c = x:size(1), x:size(2), x:size(3)
  local pixels = ops.contiguous(ops.transpose(ops.narrow(x, 2, node.skip + 1, t - node.skip), 2, 3))
  return ops.cat(run.first(nil, x), ops.view(ops.mean(pixels), { n, c }), 2)
end

-- Every row of an image sees all of them.
function run.attention(node, x, stage, ctx)
  local n, t, c = x:size(1), x:size(2), x:size(3)
  local size, starts = c / node.heads, {}
  for i = 0, n do starts[i + 1] = i * t end
  local function heads(y) return ops.view(y, { n * t, node.heads, size }) end
  local function product(nodes) return heads(layers.run(nodes, x, stage, ctx)) end
  local q, k, v
  if node.all then
    q, k, v = ops.split(ops.view(layers.run(node.all, x, stage, ctx), { n * t, 3 * c }), { c, c, c })
    q, k, v = heads(ops.contiguous(q)), heads(ops.contiguous(k)), heads(ops.contiguous(v))
  else
    q, k, v = product(node.q), product(node.k), product(node.v)
  end
  local y = ops.attention(q, k, v, { starts = tensors.from_table(starts, "i32"), causal = false, scale = 1 / math.sqrt(size) })
  return layers.run(node.out, ops.view(y, { n, t, c }), stage, ctx)
end

-- Each channel times a number of its own (arXiv 2103.17239).
function run.scale(node, x, stage) return ops.mul(x, stage.weights[node.name]) end

function run.dropout(node, x, stage, ctx)
  if not (ctx.training and stage.trained) then return x end
  return ops.dropout(x, node.p, { seed = ctx.seed, site = ("%s/dropout/%d"):format(node.name, ctx.epoch or 0), counter = 0 }, ctx.rows)
end

return layers
