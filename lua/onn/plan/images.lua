-- A plan for convolutional nets: an upper bound from the shapes that pass through their nodes. Weights are in memory, or pass through a ring
-- where --slots asks for it or memory does.
local Ring = require "onn.ring"

local images = {}

local walk = {}

-- Adds what the nodes keep and compute for one image: shape {c, h, w} -> the shape behind them. sum {kept, largest (elements), flops}.
local function through(nodes, shape, sum)
  for _, node in ipairs(nodes) do
    local before = shape
    shape = walk[node.kind](node, shape, sum) or shape
    local elements = shape[1] * shape[2] * shape[3]
    sum.kept = sum.kept + elements
    sum.largest = math.max(sum.largest, elements, before[1] * before[2] * before[3])
  end
  return shape
end

local function same() end
walk.activation, walk.norm, walk.layer_norm, walk.dropout, walk.scale = same, same, same, same, same
local function windowed(node, shape, out)
  local padding = node.padding or 0
  local function size(n) return math.floor((n + 2 * padding - node.kernel) / node.stride) + 1 end
  return { out, size(shape[2]), size(shape[3]) }
end
function walk.conv(node, shape, sum)
  local to = windowed(node, shape, node.out)
  sum.flops = sum.flops + 2 * to[1] * to[2] * to[3] * node.kernel ^ 2 * shape[1] / node.groups
  return to
end
function walk.linear(node, shape, sum)
  sum.flops = sum.flops + 2 * node.out * shape[1] * shape[2] * shape[3]
  return { node.out, shape[2], shape[3] }
end
function walk.pool(node, shape) return windowed(node, shape, shape[1]) end
function walk.average(_, shape) return { shape[1], 1, 1 } end
function walk.adaptive_pool(node, shape) return { shape[1], node.size, node.size } end
function walk.flatten(_, shape) return { shape[1] * shape[2] * shape[3], 1, 1 } end
function walk.residual(node, shape, sum)
  if node.shortcut then through(node.shortcut, shape, sum) end
  local to = through(node.body, shape, sum)
  sum.kept = sum.kept + to[1] * to[2] * to[3] -- the sum, before its activation
  return to
end
function walk.squeeze(node, shape, sum) through(node.body, { shape[1], 1, 1 }, sum) end
function walk.concat(node, shape, sum)
  local to = through(node.body, shape, sum)
  return { to[1] + shape[1], to[2], to[3] }
end
function walk.pixels(node, shape, sum)
  sum.kept = sum.kept + 2 * shape[1] * shape[2] * shape[3]
  return through(node.body, shape, sum)
end

-- Of one image of this size: {kept, largest (bytes), flops}; nil, message where it becomes smaller than nothing.
function images.pass(model, height, width)
  local sum, shape = { kept = 0, largest = 0, flops = 0 }, { model.sizes.channels, height, width }
  for _, stage in ipairs(model.stages) do
    shape = through(stage.nodes, shape, sum)
    if shape[2] < 1 or shape[3] < 1 then
      return nil, ("images of %d x %d are too small for this model: nothing is left behind '%s'"):format(height, width, stage.name)
    end
  end
  return { kept = sum.kept * 4, largest = sum.largest * 4, flops = sum.flops }
end

local function parameters(model)
  local total, largest = 0, 0
  for _, stage in ipairs(model.stages) do
    for _, t in ipairs(stage.tensors) do
      local n = t.state and 0 or 1
      for _, size in ipairs(t.shape) do n = n * size end
      total, largest = total + n, math.max(largest, n)
    end
  end
  return total, largest
end

-- Parameters of the adapters that opt.rank, opt.layers and opt.targets ask for; every layer counts.
local function adapter(model, opt)
  local total = 0
  for _, item in ipairs(model:linear_layers()) do
    local l = item.layer
    total = total + opt.rank * (l.into * (l.kernel or 1) ^ 2 + l.out)
  end
  return total
end

local function ring_of(opt, all, room, model)
  if opt.full or not opt.slots and all <= room then return nil end
  return { slots = opt.slots or 2, chunk = opt.chunk or 1, prefetch = opt.prefetch, direct = true }, Ring.layout(model, opt.chunk or 1)
end

-- As onn.plan's training. opt: budget, batch, micro_batch, full, rank, slots, chunk; set: of onn.data.images.
function images.training(model, opt, set, rates)
  local pass, wrong = images.pass(model, set.height, set.width)
  if not pass then error(wrong, 0) end
  local batch = math.min(opt.batch, set.samples)
  local micro = not opt.full and opt.micro_batch or batch -- a batch norm's statistics are of the whole batch
  local count, largest = parameters(model)
  local trained = opt.full and count or adapter(model, opt)
  local p = { weights = count * 4, state = trained * 12 + (opt.full and trained * 4 or 0), micro_batch = micro, recompute = false, kept = #model.stages,
    rebuilt = 0, micros = math.ceil(batch / micro), parameters = trained, full = opt.full, bytes_per_step = 0, spill_written = 0, carries = {}, sweep = {},
    tokens_per_step = batch, flops_per_token = 3 * pass.flops, together = 1 }
  p.tape = pass.kept * batch
  p.working = 6 * pass.largest * micro + 2 * largest * 4 + 64e6 -- gradients under way, unfolded images in oneDNN, scratch
  local layout
  p.ring, layout = ring_of(opt, p.weights + p.state + p.tape + p.working, opt.budget, model)
  if p.ring then
    local slots = math.min(p.ring.slots, #layout.units)
    p.slots, p.chunk, p.slot, p.streamed = slots, p.ring.chunk, layout.slot, p.weights
    p.weights = slots * layout.slot + p.weights * 0.05
    p.bytes_per_step = 2 * p.streamed
  end
  p.peak = p.weights + p.state + p.tape + p.working
  p.minimum, p.fits = p.peak, p.peak <= opt.budget
  p.seconds_per_step = math.max(p.flops_per_token * batch / rates.flops, p.bytes_per_step > 0 and p.bytes_per_step / rates.disk() or 0)
  return p
end

-- As onn.plan's inference and evaluation, for batches of opt.batch images of height x width.
function images.inference(model, opt, height, width)
  local pass, wrong = images.pass(model, height, width)
  if not pass then error(wrong, 0) end
  local count, largest = parameters(model)
  local p = { weights = count * 4, working = 8 * pass.largest * opt.batch + 2 * largest * 4 + 64e6, micro_batch = opt.batch }
  local layout
  p.ring, layout = ring_of(opt, p.weights + p.working, opt.budget, model)
  if p.ring then p.weights, p.slots = math.min(p.ring.slots, #layout.units) * layout.slot, p.ring.slots end
  p.peak = p.weights + p.working
  p.minimum, p.fits = p.peak, p.peak <= opt.budget
  return p
end

return images
