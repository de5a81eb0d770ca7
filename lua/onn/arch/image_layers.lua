-- What a stage of a convolutional net is made of: nodes {kind, ...}, run one after another on x f32 (n, c, h, w), or (n, c) behind "flatten".
-- A node of many has its parts as lists of nodes: residual {body, shortcut}, squeeze {body}, concat {body}, pixels {body}.
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

-- The body sees rows, one for each pixel: (n, h w, c).
function run.pixels(node, x, stage, ctx)
  local n, c, h, w = x:size(1), x:size(2), x:size(3), x:size(4)
  local rows = ops.contiguous(ops.transpose(ops.view(x, { n, c, h * w }), 2, 3))
  local y = layers.run(node.body, rows, stage, ctx)
  return ops.view(ops.contiguous(ops.transpose(y, 2, 3)), { n, y:size(3), h, w })
end

-- Each channel times a number of its own (arXiv 2103.17239).
function run.scale(node, x, stage) return ops.mul(x, stage.weights[node.name]) end

function run.dropout(node, x, stage, ctx)
  if not (ctx.training and stage.trained) then return x end
  return ops.dropout(x, node.p, { seed = ctx.seed, site = ("%s/dropout/%d"):format(node.name, ctx.epoch or 0), counter = 0 }, ctx.rows)
end

return layers
