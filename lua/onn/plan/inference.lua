-- Plans of running without gradients: generating, and held-out losses.
local costs = require "onn.plan.costs"
local data = require "onn.data"
local lora = require "onn.nn.lora"
local memory = require "onn.plan.memory"
local reading = require "onn.plan.reading"

local plan = {}

-- What running without gradients needs. opt: tokens (that go through together: of a prompt's part or a micro-batch), usual (such tokens
-- in most sweeps; tokens), sequences (1),
-- cache (tokens of each that keys and values are kept for, or nil), carried (tokens under way between stages; tokens), seq_len, labels
-- (losses instead of logits), body (neither), rows (of logits at once), micros (micro-batches that go through together; 1), budget,
-- chunk, slots, prefetch, rates, adapter (its bytes).
-- Returns {weights, cache, working, peak, slots, tile, ring, bytes_per_sweep, seconds_per_sweep (of reading), fits, minimum, dtype}.
function plan.inference(model, opt)
  local budget, rates = opt.budget or math.huge, opt.rates or reading.unknown_rates
  local sequences, carried = opt.sequences or 1, opt.carried or opt.tokens
  local text = not opt.labels and model.net.continues ~= false and not model.net.cache -- does it take what onn.plan.costs' text does?
  local cache = opt.cache and model.net.continues ~= false and costs.cache(model, sequences, opt.cache) or 0
  -- Most bytes at the stages but the last, at the last, and what stays all the while, where weights rest or pass as `way` says.
  local function needs(way)
    local function stay(m, common) return cache + (opt.adapter or 0) + common + 2 ^ 16 + carried * (m.carry / opt.tokens + 64) end
    if text then -- tables of positions grow with the text, and are there twice meanwhile
      local m = costs.text(model, opt.tokens, math.max(opt.cache or 0, opt.tokens), way)
      return m.forward, m.head + 2 * (opt.rows or sequences) * m.logits, stay(m, 1.5 * m.common)
    end
    local length = math.min(opt.seq_len or opt.tokens, opt.tokens)
    local m = costs.of(model, math.ceil(opt.tokens / length), length, { lowest = math.huge, layout = way.layout, tile = way.tile })
    local forward, outputs = 0, model.sizes.outputs or model.sizes.vocabulary
    for _, stage in ipairs(m.stages) do forward = math.max(forward, stage.forward) end
    if opt.body or model.sizes.top and model.sizes.top.kind == "body" then return forward, m.carry, stay(m, m.common) + m.batch end
    local logits = not opt.labels and outputs and 2 * (opt.rows or sequences) * outputs * 4 or 0
    return forward, m.head(opt.micros or 1, false) + logits, stay(m, m.common) + m.batch
  end
  local usual = opt.usual or opt.tokens
  local by_expert = require("onn.ring").seldom(model, usual) -- then finer cuts may read less
  local forward, out, fixed = needs {}
  local rest = fixed + math.max(forward, out)
  local p = { cache = cache, working = rest - cache, dtype = model.dtype, weights = memory.weights(model), bytes_per_sweep = 0,
    seconds_per_sweep = 0 }
  p.peak = p.weights + math.max(rest, memory.loading(model))
  p.minimum = p.peak
  local vectors, few, ways = memory.vectors(model), opt.slots or (opt.prefetch == false and 1 or 2), reading.cuts(model, opt)
  local function look(cut) -- what units of this cut leave to be held beside them
    local layout = require("onn.ring").layout(model, cut.chunk, cut.tile)
    local pass, last, stay = needs { layout = layout, tile = cut.tile }
    local beside = stay + math.max(pass, last)
    p.minimum = math.min(p.minimum, vectors + math.min(few, #layout.units) * layout.slot + beside)
    return layout, beside
  end
  local function stream(cut)
    local layout, beside = look(cut)
    local spare = budget == math.huge and #layout.units or math.floor((budget - vectors - beside) / layout.slot)
    p.slots = math.min(#layout.units, opt.slots or math.max(few, spare))
    p.weights, p.working = vectors + p.slots * layout.slot, beside - cache
    p.peak, p.chunk, p.tile = p.weights + beside, cut.chunk, cut.tile
    p.ring = { slots = p.slots, chunk = cut.chunk, tile = cut.tile, prefetch = opt.prefetch, direct = true }
    p.bytes_per_sweep = reading.reader(model, layout)({ from = 1, micros = opt.micros or 1, heads = 1, tokens = usual }, p.slots)
    p.seconds_per_sweep = p.bytes_per_sweep > 0 and p.bytes_per_sweep / rates.disk() or 0
  end
  local best
  for _, cut in ipairs((opt.slots or p.peak > budget) and ways or {}) do
    if best and not by_expert then break end
    stream(cut)
    if p.peak <= budget and (not best or p.bytes_per_sweep < best.bytes) then best = { cut = cut, bytes = p.bytes_per_sweep } end
  end
  if p.slots then
    if best then stream(best.cut) end
    look(ways[#ways])
  end
  p.fits = p.peak <= budget
  return p
end

-- What generating from prompts (lists of ids; none: one that is still to come) needs. opt: max_tokens, budget, adapter (directory),
-- adapter_bytes (of one that is on the model), chunk, slots, prefetch. Returns plan.inference's fields, tokens (of the longest sequence)
-- and together (tokens of prompts at once).
function plan.generation(model, prompts, opt, rates)
  local longest, total = opt.max_tokens, 0
  for _, ids in ipairs(prompts) do longest, total = math.max(longest, #ids + opt.max_tokens), total + #ids end
  local adapter = (opt.adapter_bytes or 0) + (opt.adapter and lora.bytes(opt.adapter, model) or 0)
  local function need(together)
    return plan.inference(model, { tokens = math.min(512, together), usual = math.max(#prompts, 1), sequences = math.max(#prompts, 1),
      cache = longest, seq_len = longest, carried = together, budget = opt.budget, chunk = opt.chunk, slots = opt.slots,
      prefetch = opt.prefetch, adapter = adapter, rates = rates })
  end
  local together = math.max(total, 512)
  local p = need(together)
  while together > 512 and not p.fits do
    together = math.max(512, math.floor(together / 2))
    p = need(together)
  end
  p.tokens, p.together = longest, together
  return p
end

-- What the loss over `set` (of onn.data) needs: plan.inference's fields, micro_batch (rows) and together (micro-batches that go through
-- the model stage by stage, so that it is read once for all of them). opt: batch (most rows of a micro-batch), seq_len, adapter, budget,
-- chunk, slots, prefetch.
function plan.evaluation(model, set, opt, rates)
  local rows = data.rows(set, { seq_len = opt.seq_len, pack = opt.pack }):info()
  local longest = math.min(opt.seq_len, rows.longest)
  local adapter = opt.adapter and lora.bytes(opt.adapter, model) or 0
  local function need(micro, together)
    local p = plan.inference(model, { tokens = micro * longest, carried = micro * longest * together, seq_len = longest, labels = true,
      micros = together, budget = opt.budget, chunk = opt.chunk, slots = opt.slots, prefetch = opt.prefetch, adapter = adapter, rates = rates })
    p.micro_batch, p.together = micro, together
    return p
  end
  local micro = math.min(opt.batch, rows.rows)
  local p = need(micro, 1)
  while micro > 1 and not p.fits do
    micro = math.floor(micro / 2)
    p = need(micro, 1)
  end
  local most = math.ceil(rows.rows / micro)
  while p.fits and p.bytes_per_sweep > 0 and p.together < most do -- each doubling halves what is read, while memory for it is there
    local more = need(micro, math.min(2 * p.together, most))
    if not more.fits or more.bytes_per_sweep / more.together >= p.bytes_per_sweep / p.together then break end
    p = more
  end
  return p
end

return plan
