-- The plan of nets that the decoder's count does not know: all weights in memory, or through slots where they do not fit or --slots says
-- so. What a token's activations take is told by the net (net.elements), so a peak is an estimate here.
local memory = require "onn.plan.memory"

local plain = {}

local SCRATCH = 2e6 -- of kernels

function plain.applies(model) return model.sizes.heads == nil end

local function per_token(model) return 4 * (model.net.elements and model.net.elements(model.sizes) or 4 * (model.sizes.width or 0)) end

local function matrices(model)
  local n = 0
  for _, stage in ipairs(model.stages) do
    for _, t in ipairs(stage.tensors) do
      local size = 1
      for _, d in ipairs(t.shape) do size = size * d end
      if not t.vector and stage.kind ~= "embedding" then n = n + size end
    end
  end
  return n
end

-- The ring of `slots` (nil: two), its bytes, those of a visit to all units, and of one slot.
local function ring_of(model, opt)
  local chunk = opt.chunk or 1
  local layout = require("onn.ring").layout(model, chunk)
  local slots, all = math.min(opt.slots or 2, #layout.units), 0
  for _, bytes in ipairs(layout.bytes) do all = all + bytes end
  return { slots = slots, chunk = chunk, prefetch = opt.prefetch, direct = true }, memory.vectors(model) + slots * layout.slot, all, layout.slot
end

-- See onn.plan's training.
function plain.training(model, opt)
  local modules, stages = {}, #model.stages
  for _, item in ipairs(model:linear_layers()) do modules[#modules + 1] = item.layer end
  local budget, rates = opt.budget or math.huge, opt.rates or { product = 5e11 }
  local p = { weights = memory.weights(model), state = memory.state(model, opt, modules), tape = 0, spill_written = 0, spill_read = 0,
    spill_space = 0, pinned = 0, bytes_per_step = 0, trained_layers = model.sizes.layers, lowest = 0, full = opt.full, dtype = model.dtype }
  local adapter = 0
  for _, m in ipairs(modules) do adapter = adapter + (m.out + m.into) * (opt.rank or 0) end
  p.adapter_parameters, p.parameters = adapter, opt.full and model:parameters() or adapter
  if not opt.full and not model.unwritten and (opt.slots or p.weights + p.state > budget) then
    p.ring, p.weights, p.streamed, p.slot = ring_of(model, opt)
    p.slots, p.chunk, p.bytes_per_step = p.ring.slots, p.ring.chunk, 2 * p.streamed
  end
  p.recompute = opt.recompute == "on" or opt.recompute == true
  local each, rows = per_token(model) * (opt.row_tokens or opt.seq_len or 1), opt.batch
  local micro = math.min(opt.micro_batch or rows, rows)
  while not opt.micro_batch and micro > 1 and p.weights + p.state + each * rows > budget do micro = math.ceil(micro / 2) end
  p.micro_batch, p.micros = micro, math.ceil(rows / micro)
  p.kept, p.rebuilt = p.recompute and 0 or stages, p.recompute and stages or 0
  p.working = each * (p.recompute and micro or rows) + SCRATCH
  p.together = p.micros
  p.peak = p.weights + p.state + p.working
  p.minimum = p.weights + p.state + each * micro + SCRATCH
  p.fits = p.minimum <= budget
  p.tokens_per_step = rows * (opt.row_tokens or opt.seq_len or 1)
  p.flops_per_token = (opt.full and 6 or 4) * matrices(model)
  p.seconds_per_step = p.flops_per_token * p.tokens_per_step / rates.product
  p.sweep, p.carries = { recompute = p.recompute, head_together = p.together }, { pinned = 0, expected = 0 }
  return p
end

-- See onn.plan's inference.
function plain.inference(model, opt)
  local budget = opt.budget or math.huge
  local p = { cache = 0, working = SCRATCH + per_token(model) * math.max(opt.tokens or 1, opt.carried or 0) + (opt.adapter or 0), dtype = model.dtype,
    weights = memory.weights(model), bytes_per_sweep = 0, seconds_per_sweep = 0 }
  if not model.unwritten and (opt.slots or p.weights + p.working > budget) then
    p.ring, p.weights, p.bytes_per_sweep, p.slot = ring_of(model, opt)
    p.slots, p.chunk = p.ring.slots, p.ring.chunk
    p.seconds_per_sweep = opt.rates and p.bytes_per_sweep / opt.rates.disk() or 0
  end
  p.peak = p.weights + p.working
  p.minimum, p.fits = p.peak, p.peak <= budget
  return p
end

return plain
