-- The plan: what rests where, how stages are chunked, how many slots they pass through, how large a micro-batch is, which tapes are
-- kept, and what that costs in bytes, operations and seconds, said before anything is loaded. Of all ways that fit the budget the one
-- with the fewest predicted seconds is taken, then the one that moves the fewest bytes to and from disk, then the one with the lowest peak.
-- Bytes and operations come from dry runs of the stages' own code (onn.plan.costs), so a plan knows nothing of any architecture. Operations
-- per token are those of the usual count for LoRA training: 2 per weight forward, 2 for the input's gradient where it is needed, 6 per
-- adapter weight, causal attention at half its square.
local Carries = require "onn.carries"
local costs = require "onn.plan.costs"
local inference = require "onn.plan.inference"
local memory = require "onn.plan.memory"
local reading = require "onn.plan.reading"

local plan = { inference = inference.inference, generation = inference.generation, evaluation = inference.evaluation }

-- Is something of a stage trained, where `layers` (set of blocks' numbers, or nil: all) says which?
local function wanted(stage, layers) return not layers or stage.index ~= nil and layers[stage.index] == true end

-- Blocks that are trained: how many, and the lowest one's number.
local function block_count(model, layers)
  local count, lowest = 0, nil
  for _, stage in ipairs(model.stages) do
    if stage.kind == "block" and wanted(stage, layers) then count, lowest = count + 1, math.min(lowest or math.huge, stage.index) end
  end
  return count, lowest
end

-- The linear layers that get an adapter, as a list and as a set, and the position of the first stage with one (the last, if none has).
local function adapted(model, opt)
  local layers, targets = opt.layers, opt.targets
  local list, set, names, first = {}, {}, {}, #model.stages
  if type(targets) == "table" then for _, name in ipairs(targets) do names[name] = true end end
  if type(targets) == "string" then for name in targets:gmatch "[^,%s]+" do names[name] = true end end
  local all = targets == nil or names["all-linear"]
  for i, stage in ipairs(model.stages) do
    for _, layer in ipairs(wanted(stage, layers) and stage.layers or {}) do
      local possible = not layer.saved and (not opt.rank or opt.rank % (layer.groups or 1) == 0) -- see onn.nn.lora
      if possible and (all and not layer.expert or names[layer.name] or names[layer.name:match "[^.]+$"]) then
        list[#list + 1], set[layer], first = layer, true, math.min(first, i)
      end
    end
  end
  return list, set, first
end

-- Bytes of each stage's matrices as arithmetic reads them: all of them, or of an embedding none.
local function passing_bytes(model)
  local bytes, sizes, each = {}, {}, model.dtype == "bf16" and 2 or 4
  for i, stage in ipairs(model.stages) do
    bytes[i] = 0
    for _, t in ipairs(stage.tensors) do
      local n = t.vector and 0 or each
      for _, size in ipairs(t.shape) do n = n * size end
      sizes[t.name] = n
      if stage.kind ~= "embedding" then bytes[i] = bytes[i] + n end
    end
    for _, name in pairs(stage.shares or {}) do bytes[i] = bytes[i] + (sizes[name] or 0) end
  end
  return bytes
end

-- Sums of f(1), f(2), ... f(n): a function of from and to.
local function sums(n, f)
  local upto = { [0] = 0 }
  for i = 1, n do upto[i] = upto[i - 1] + (f(i) or 0) end
  return function(from, to) return to >= from and upto[to] - upto[from - 1] or 0 end
end

-- A micro-batch's costs (onn.plan.costs), with sums over stages, and what was worked out of them: moments.
local function costs_of(model, opt, f, micro, layout)
  local length = opt.seq_len or 1
  local m = costs.of(model, micro, length, { lowest = f.stage, modules = f.modules, full = opt.full, rank = opt.rank,
    dropout = opt.dropout, layout = layout, tile = f.tile })
  local before = f.last - 1
  m.tokens, m.length, m.moments = micro * length, length, {}
  m.flops = sums(before, function(i) return m.stages[i].flops end)
  m.back_flops = sums(before, function(i) return m.stages[i].back_flops end)
  m.tapes = sums(before, function(i) return m.stages[i].tape end)
  m.inputs = sums(before, function(i) return i > 1 and m.stages[i - 1].carry end)
  return m
end

-- Operations per token: all of them; those on the way there, through the stages from position `from` on; the last stage's; those on the
-- way back, recompute of what is not kept included.
local function operations(opt, f, m, kept, from)
  local forward, heads = m.flops(from, f.last - 1) / m.tokens, m.head_flops(true) / m.tokens * (opt.supervised or 1)
  local back = (m.back_flops(f.stage, f.last - 1) + m.flops(f.bottom, f.last - 1 - kept)) / m.tokens
  return forward + heads + back, forward, heads, back
end

-- Numbers from `most` down to `least` in about `steps` equal steps, both ends included.
local function between(least, most, steps)
  local list, seen = {}, {}
  for k = steps, 0, -1 do
    local n = math.floor(least + (most - least) * k / steps + 0.5)
    if not seen[n] then list[#list + 1], seen[n] = n, true end
  end
  return list
end

local function divisors(opt)
  if opt.micro_batch then return { math.min(opt.micro_batch, opt.batch) } end
  local list = {}
  for m = opt.batch, 1, -1 do
    if opt.batch % m == 0 and (m == 1 or m * (opt.seq_len or 1) <= 8192) then list[#list + 1] = m end
  end
  return list
end

-- Bytes of carries that must be able to stay in memory, so that each goes to the disk and comes back once at most: a boundary's, the
-- one in use, and those that are brought back ahead.
local function at_hand(micros, carry) return (micros + 3) * carry end

-- Bytes that go to disk and come back when how.ram bytes of the carries may stay in memory. boundaries: hidden states and gradients of all
-- micro-batches that pass; again: those of them that are read twice.
local function spilled(how, micros, carry, boundaries, again)
  if how.ram >= how.carries then return 0, 0 end
  local stay = how.ram - math.max(Carries.under_way(how.ram), carry)
  if stay >= at_hand(micros, carry) then return how.carries - stay, how.carries - stay end
  return boundaries * micros * carry, (boundaries + again) * micros * carry
end

-- All that does not depend on the choices: sizes, what is trained, rates. Positions: stage, the first with something trained in it; bottom,
-- the first whose tape may be kept (an embedding's is not); last.
local function facts_of(model, opt)
  local carried = costs.memory(model, opt.batch)
  local modules, set, first = adapted(model, opt)
  if opt.full then modules, set, first = {}, nil, 1 end
  local count, lowest = block_count(model, opt.layers)
  local f = { modules = set, count = count, lowest = lowest, adapter = 0, budget = opt.budget or math.huge, stage = first,
    last = #model.stages, state = memory.state(model, opt, modules) + carried, rates = opt.rates or reading.unknown_rates }
  for _, layer in ipairs(modules) do f.adapter = f.adapter + memory.adapter(layer, opt.rank) end
  f.bottom = math.max(first, model.stages[1].kind == "embedding" and 2 or 1)
  f.above = f.last - f.bottom
  local passing = passing_bytes(model)
  f.resident, f.loading = memory.weights(model), memory.loading(model)
  f.passing = sums(f.last, function(i) return passing[i] end)
  return f
end

-- Each byte that a tape keeps is taken to be moved about so many times by operations that do little else (measured on a llama of 1B
-- parameters: 0.24 s of an update of 512 tokens).
local MOVES = 10

-- Seconds that a stage takes for a micro-batch beside its arithmetic: small nets go through in few large ones. (Updates of 16 x 64 tokens: an
-- LSTM of 256 units 17 ms as one micro-batch and 20 as four, a llama of 6 blocks, 64 wide, 28 ms as one and 53 as eight.)
local VISIT = 2e-4

-- Seconds of the three parts of an update: the way there, the head, and the way back, each the longer of its arithmetic and its reading;
-- the reader is only slots ahead, so a part does not wait less because another one reads less. Arithmetic: operations, weights that pass
-- through the caches once for each micro-batch, and what is moved. bytes: of weights read; spills: seconds that they take in each part.
local function seconds_of(opt, f, m, how, from, bytes, spills)
  local rates, micros, tokens = f.rates, math.ceil(opt.batch / how.micro), opt.batch * (opt.row_tokens or m.length)
  local _, there, head, back = operations(opt, f, m, how.kept, from)
  local on, above, head_bytes = f.passing(from, f.last - 1), f.passing(f.bottom, f.last - 1), f.passing(f.last, f.last)
  local again, heads = f.passing(f.bottom, f.last - 1 - how.kept), math.ceil(micros / how.together)
  local moved = m.tapes(f.bottom, f.last - 1) * MOVES / rates.copy * tokens / m.tokens
  local arithmetic = { tokens * there / rates.product + micros * on / rates.pass + moved / 3 + VISIT * micros * f.last,
    tokens * head / rates.product + 2 * heads * head_bytes / rates.pass, -- its weight is packed and passes again
    tokens * back / rates.product + micros * (above + again) / rates.pass + 2 * moved / 3 + VISIT * micros * (f.last + f.above - how.kept) }
  local times = f.tile and micros or 1 -- row tiles pass once for each micro-batch
  local passing = { times * on, heads * head_bytes, times * above }
  local reads = (bytes > 0 and bytes / rates.disk() or 0) / math.max(1, passing[1] + passing[2] + passing[3])
  local seconds = bytes > 0 and f.layout.slot / rates.disk() or 0
  for part = 1, 3 do
    local io = reads * passing[part] + spills[part]
    seconds = seconds + ((how.slots == 1 or opt.prefetch == false) and arithmetic[part] + io or math.max(arithmetic[part], io))
  end
  return seconds
end

-- The largest moments of one micro-batch beside all kept tapes: of stages whose tapes are kept, and of the others, where the tape and
-- what comes out are made again.
local function moments(f, m, kept)
  if m.moments[kept] then return unpack(m.moments[kept]) end
  local during, rebuilt = 0, 0
  for i = 1, f.last - 1 do
    local one = m.stages[i]
    if i >= f.last - kept then
      during = math.max(during, one.back, one.forward - one.tape - one.carry)
    else
      rebuilt = math.max(rebuilt, one.forward, one.tape and one.back + one.tape + one.carry or 0)
    end
  end
  m.moments[kept] = { during, rebuilt }
  return during, rebuilt
end

-- One candidate: its bytes and seconds. how: {micro, kept (blocks whose tapes are kept), together, ram (of carries), slots (nil: all
-- weights rest in memory)}.
local function candidate(opt, f, m, how)
  local micros = math.ceil(opt.batch / how.micro)
  local rebuilt, kept_from, during, most = f.above - how.kept, f.last - how.kept, moments(f, m, how.kept)
  local tape, pinned = m.tapes(kept_from, f.last - 1) * micros, m.inputs(kept_from, f.last - 1) * micros
  local weights = how.slots and f.vectors + how.slots * f.layout.slot or f.resident
  local work = math.max(during, most - tape, m.head(how.together, true)) -- where tapes are rebuilt, those that were kept are gone
  if how.ram < how.carries then work = work + 4 * m.carry + 2 ^ 16 end -- of carries that are spilled some are in use beside the quota
  local frozen = f.stage > 2 -- are there stages below with nothing trained in them?
  if opt.reuse_prefix and frozen then work = work + 2 * m.carry end -- what onn.prefix copies and fetches
  local carries = math.min(how.ram, how.carries) + pinned
  local p = { weights = weights, state = f.state, tape = tape + carries, working = work + micros * (m.batch + 8 * m.tokens + 2 ^ 13) + m.common + 2 ^ 16,
    chunk = how.slots and f.chunk, tile = how.slots and f.tile, layout = f.layout, micro_batch = how.micro, micros = micros,
    recompute = rebuilt > 0, kept = how.kept, rebuilt = rebuilt, slots = how.slots, carries_ram = how.ram < how.carries and how.ram or nil,
    pinned = pinned, together = how.together }
  p.peak = weights + math.max(f.state + p.tape + p.working, how.slots and 0 or f.loading)
  local heads = math.ceil(micros / how.together)
  p.spill_written, p.spill_read = spilled(how, micros, m.carry, f.last - 1 - how.kept + f.above, rebuilt)
  p.spill_space = math.min(p.spill_written, how.carries)
  local function cost(from)
    local flops = operations(opt, f, m, how.kept, from)
    local bytes = how.slots and f.reads({ from = from, micros = micros, heads = heads, lowest = f.stage, tokens = m.tokens,
      kept = how.kept }, how.slots) or 0
    local spills = { 0, 0, 0 }
    if p.spill_written > 0 then spills = { p.spill_written / f.rates.write(), 0, p.spill_read / f.rates.disk() } end
    local seconds = seconds_of(opt, f, m, how, from, bytes, spills)
    return flops, bytes, seconds
  end
  p.flops_per_token, p.bytes_per_step, p.seconds_per_step = cost(1)
  if opt.reuse_prefix and frozen then -- what an update of the first epoch reads of the frozen stages serves several
    p.uncached_bytes_per_step = p.bytes_per_step
    p.suffix_flops_per_token, p.suffix_bytes_per_step, p.suffix_seconds_per_step = cost(f.stage)
    local step = opt.batch * (opt.row_tokens or m.length)
    local spare = math.max(0, f.budget - p.peak)
    local held = math.min(spare, (opt.all_tokens or math.huge) * m.hidden / m.tokens * 1.125) -- what no other use takes
    p.prefix_ram = math.floor(held / 1.125) -- the allocator adds up to an eighth
    p.held, p.peak = held, p.peak + held
    local ahead = p.tape + p.working + spare - held - most
    ahead = ahead / (2 * m.carry / m.tokens + 64)
    p.ahead_tokens = math.max(step, math.floor(math.min(ahead, opt.all_tokens or math.huge)))
    p.ahead_ram = p.carries_ram and math.max(carries, math.floor(ahead - 64 * p.ahead_tokens)) or nil
    if how.slots then
      local bytes = f.frozen_bytes * (f.tile and micros or 1 / math.max(1, math.floor(p.ahead_tokens / step)))
      p.bytes_per_step = p.suffix_bytes_per_step + bytes
      p.seconds_per_step = p.suffix_seconds_per_step + math.max(bytes / f.rates.disk(),
        step * (p.flops_per_token - p.suffix_flops_per_token) / f.rates.product)
    end
  end
  return p
end

-- Bytes that a settled update of a plan reads, spills and fetches.
local function moved_bytes(p) return (p.suffix_bytes_per_step or p.bytes_per_step) + p.spill_written + p.spill_read end

-- Is `a` the better plan? Seconds less than a hundredth apart are equal.
local function better(a, b, budget)
  if not b then return true end
  local fits, fitted = a.peak <= budget, b.peak <= budget
  if fits ~= fitted then return fits end
  if not fits then return a.peak < b.peak end
  local x, y = a.suffix_seconds_per_step or a.seconds_per_step, b.suffix_seconds_per_step or b.seconds_per_step
  if math.abs(x - y) > 0.01 * y then return x < y end
  x, y = moved_bytes(a), moved_bytes(b)
  if x ~= y then return x < y end
  return a.peak < b.peak
end

-- Every way of running with these slots ("all": weights rest in memory); calls try(candidate).
local function variants(model, opt, f, streamed, try)
  local modes = opt.recompute == "on" and { 0 } or opt.recompute == "off" and { f.above } or between(0, f.above, 6)
  for _, micro in ipairs(divisors(opt)) do
    local m = costs_of(model, opt, f, micro, streamed and f.layout or nil)
    local micros = math.ceil(opt.batch / micro)
    for _, kept in ipairs(modes) do
      for _, together in ipairs(between(1, micros, 4)) do
        local carries = micros * (m.inputs(f.bottom, f.last - 1 - kept) + 2 * m.carry) -- two at the boundary
        local least = (together + 3) * m.carry
        local rams = { math.huge }
        if opt.scratch ~= false and carries > least then -- a quarter is for writes under way
          rams = { math.huge, math.ceil(at_hand(micros, m.carry) * 4 / 3) + m.carry, least }
        end
        for _, ram in ipairs(rams) do
          local how = { micro = micro, kept = kept, together = together, ram = math.max(ram, least), carries = carries }
          if streamed then
            local slots, most = opt.slots or (opt.prefetch == false and 1 or 2), #f.layout.units
            how.slots = math.min(slots, most)
            local p = candidate(opt, f, m, how)
            local spare = math.floor((f.budget - p.peak + (p.held or 0)) / f.layout.slot) -- slots go before a prefix cache in memory
            if not opt.slots and spare > 0 then
              try(p)
              how.slots = math.min(how.slots + spare, most)
              p = candidate(opt, f, m, how)
            end
            try(p)
            local needed = f.suffix_units -- once the prefix is known, more slots than the rest takes are of no use
            if p.suffix_seconds_per_step and how.slots > needed and not opt.slots then
              how.slots = needed
              try(candidate(opt, f, m, how))
            end
          else
            local p = candidate(opt, f, m, how)
            try(p)
            if p.peak <= f.budget then break end -- carries that fit are not spilled
          end
        end
      end
    end
  end
end

-- Puts what a way of cutting means into the facts: layout, what stays beside it, what is read; how many units the stages from the lowest
-- trained one on take, and the bytes of all others.
local function through_ring(model, f, cut)
  local Ring = require "onn.ring"
  f.layout, f.chunk, f.tile, f.vectors = Ring.layout(model, cut.chunk, cut.tile), cut.chunk, cut.tile, memory.vectors(model)
  f.reads = reading.reader(model, f.layout)
  local suffix, count = {}, 0
  for _, unit in ipairs(Ring.uses(f.layout, reading.visits(model, { from = f.stage, micros = 1, heads = 1 }))) do
    if not suffix[unit] then suffix[unit], count = true, count + 1 end
  end
  f.suffix_units, f.frozen_bytes = math.max(2, count), 0
  for unit, bytes in ipairs(f.layout.bytes) do if not suffix[unit] then f.frozen_bytes = f.frozen_bytes + bytes end end
  return f
end

-- The least peak of all ways with this cut, however long they take.
local function least_peak(model, opt, f, cut)
  local least, only = math.huge, through_ring(model, setmetatable({ budget = 0 }, { __index = f }), cut)
  only.reads = function() return 0 end
  variants(model, opt, only, true, function(p) least = math.min(least, p.peak) end)
  return least
end

-- opt: rank, layers (set or nil), seq_len, micro_batch, batch, recompute ("auto"|"on"|"off"), full, targets, budget; chunk (the
-- most blocks of a unit; fewer where so many do not fit), slots, prefetch (false), scratch (false: nothing is spilled), reuse_prefix
-- (later epochs find the frozen prefix's output known), row_tokens (mean tokens of a row; seq_len), all_tokens (of the data), rates (onn.limit's).
-- Returns {weights, state, tape, working, peak (bytes); micro_batch, recompute, kept, slots (nil: weights rest in memory), chunk or tile
-- (bytes, where not even two blocks fit and matrices are cut into row tiles);
-- bytes_per_step, flops_per_token, seconds_per_step and the same with suffix_ in front for later epochs; ring, sweep (what Model:load
-- and Session take), prefix_ram (what the budget leaves for the frozen prefix's cache), ahead_tokens and ahead_ram (what
-- Session:ahead takes), fits, minimum (the least peak of all ways that
-- were looked at: all, where none fits), trained_layers, lowest, parameters}.
function plan.training(model, opt)
  local f, best, least = facts_of(model, opt), nil, math.huge
  local function try(p)
    least = math.min(least, p.peak)
    if better(p, best, f.budget) then best = p end
  end
  local forced = opt.slots -- a chunk says only how, where weights are streamed
  if not forced or opt.full then variants(model, opt, f, false, try) end
  if not opt.full and (forced or best.peak > f.budget) then
    local ways = reading.cuts(model, opt)
    for _, cut in ipairs(ways) do
      if best and best.slots and best.peak <= f.budget then break end
      variants(model, opt, through_ring(model, f, cut), true, try)
    end
    least = math.min(least, least_peak(model, opt, f, ways[#ways]))
  end
  best.ring = best.slots and { slots = best.slots, chunk = best.chunk, tile = best.tile, prefetch = opt.prefetch, direct = true } or nil
  local keep_from = #model.stages - best.kept
  best.sweep = { keep_from = keep_from, head_together = best.together }
  best.carries = { quota = best.carries_ram and best.carries_ram + best.pinned, pinned = best.pinned, expected = best.spill_space }
  best.adapter_parameters, best.trained_layers, best.lowest = f.adapter, f.count, f.lowest
  best.parameters, best.full = opt.full and model:parameters() or f.adapter, opt.full
  best.fits, best.minimum, best.tokens_per_step = best.peak <= f.budget, least, opt.batch * (opt.row_tokens or opt.seq_len or 1)
  if best.slots then
    best.slot, best.streamed = best.layout.slot, 0
    for _, bytes in ipairs(best.layout.bytes) do best.streamed = best.streamed + bytes end
  end
  best.layout = nil
  return best
end

-- Models that a Lua file defines have a plainer plan: their code may not stand a dry run.
for _, name in ipairs { "training", "inference", "generation", "evaluation" } do
  local usual = plan[name]
  plan[name] = function(model, ...) return (model.net.custom and require("onn.plan.plain")[name] or usual)(model, ...) end
end

return plan
