-- A plan for models that a Lua file defines: all weights in memory, or through as many slots as are asked for. The estimate is a rough one:
-- what does not fit fails where it is allocated.
local data = require "onn.data"
local memory = require "onn.plan.memory"
local tensors = require "onn.core.tensor"

local plain = {}

local function ring_of(model, opt)
  return opt.slots and not opt.full and not model.unwritten and { slots = opt.slots, chunk = opt.chunk or 1, prefetch = opt.prefetch, direct = true } or nil
end

-- Weights of the products, which each token passes once.
local function product_weights(model)
  local total = 0
  for _, item in ipairs(model:linear_layers()) do total = total + item.layer.out * item.layer.into end
  return total
end

local function weight_bytes(model, ring)
  if not ring then return memory.weights(model) end
  local layout = require("onn.ring").layout(model, ring.chunk)
  return memory.vectors(model) + math.min(ring.slots, #layout.units) * layout.slot, layout
end

local function finish(model, p, opt, tokens)
  p.ring = ring_of(model, opt)
  local layout
  p.weights, layout = weight_bytes(model, p.ring)
  p.slots, p.chunk, p.dtype = p.ring and p.ring.slots, p.ring and p.ring.chunk, model.dtype
  p.slot, p.streamed = layout and layout.slot, 0
  for _, bytes in ipairs(layout and layout.bytes or {}) do p.streamed = p.streamed + bytes end
  p.working = tokens * 64 * (model.sizes.width + (model.sizes.inner or 0))
  p.peak = p.weights + p.working + (p.state or 0)
  p.minimum, p.fits, p.budget = p.peak, p.peak <= (opt.budget or math.huge), tensors.memory().budget
  return p
end

-- As plan.training.
function plain.training(model, opt)
  local micro = math.min(opt.micro_batch or math.max(1, math.floor(8192 / opt.seq_len)), opt.batch)
  local micros, blocks = math.ceil(opt.batch / micro), 0
  local modules, adapter = {}, 0
  for _, item in ipairs(opt.full and {} or model:linear_layers()) do
    if not opt.layers or opt.layers[item.stage.index] then modules[#modules + 1] = item.layer end
  end
  for _, layer in ipairs(modules) do adapter = adapter + (layer.out + layer.into) * opt.rank end
  for _, stage in ipairs(model.stages) do if stage.kind == "block" then blocks = blocks + 1 end end
  local p = { micro_batch = micro, micros = micros, recompute = opt.recompute == "on", kept = opt.recompute == "on" and 0 or blocks,
    rebuilt = opt.recompute == "on" and blocks or 0, together = micros, tape = 0, spill_written = 0, spill_read = 0, pinned = 0,
    state = memory.state(model, opt, modules), sweep = { head_together = micros }, carries = { pinned = 0, expected = 0 },
    adapter_parameters = adapter, parameters = opt.full and model:parameters() or adapter, full = opt.full, trained_layers = blocks }
  if p.recompute then p.sweep.keep_from = #model.stages end
  local tokens = opt.batch * (opt.row_tokens or opt.seq_len)
  finish(model, p, opt, tokens)
  p.tokens_per_step, p.flops_per_token = tokens, (opt.full and 6 or 4) * product_weights(model)
  p.bytes_per_step = p.streamed * 2
  p.seconds_per_step = p.flops_per_token * tokens / (opt.rates and opt.rates.product or 5e11)
  return p
end

-- As plan.inference.
function plain.inference(model, opt)
  local p = finish(model, { cache = 0, seconds_per_sweep = 0 }, opt, opt.tokens or 512)
  p.bytes_per_sweep = p.streamed
  return p
end

-- As plan.generation, for what an engine loads before it is asked for anything.
function plain.generation(model, _, opt)
  local p = plain.inference(model, opt)
  p.tokens, p.together = 512, 512
  return p
end

-- As plan.evaluation.
function plain.evaluation(model, set, opt)
  local rows = data.rows(set, { seq_len = opt.seq_len, pack = opt.pack }):info()
  local p = plain.inference(model, setmetatable({ tokens = opt.batch * rows.longest }, { __index = opt }))
  p.micro_batch, p.together = math.min(opt.batch, rows.rows), 1
  return p
end

return plain
