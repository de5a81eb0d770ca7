-- The plan: what rests where, how stages are chunked, how many slots they pass through, how large a micro-batch is, which tapes are
-- kept, and what that costs in bytes, operations and seconds, said before anything is loaded. Of all ways that fit the budget the one
-- with the fewest predicted seconds is taken, then the one that moves the fewest bytes to and from disk, then the one with the lowest peak.
-- Operations per token follow the usual count for LoRA training: 2 per weight forward, 2 for the input's gradient where it is needed,
-- 6 per adapter weight, causal attention at half its square.
local Carries = require "onn.carries"
local data = require "onn.data"
local lora = require "onn.nn.lora"
local memory = require "onn.plan.memory"

local plan = {}

-- Rates where nobody has measured any: they only order the candidates.
local unknown_rates = { product = 5e11, pass = 1e10, copy = 1e10, disk = function() return 1e9 end, write = function() return 5e8 end }

local function layer_set(model, layers)
  local set, count, lowest = {}, 0, math.huge
  for _, stage in ipairs(model.stages) do
    if stage.kind == "block" and (not layers or layers[stage.index]) then
      set[stage.index], count, lowest = true, count + 1, math.min(lowest, stage.index)
    end
  end
  return set, count, lowest
end

-- Weights in one block's products.
local function block_size(model)
  for _, stage in ipairs(model.stages) do
    if stage.kind == "block" then
      local weights = 0
      for _, layer in ipairs(stage.layers) do weights = weights + layer.out * layer.into end
      return weights
    end
  end
end

-- The linear layers that get an adapter: {name, out, into} each.
local function adapted(model, set, targets)
  local list, wanted = {}, {}
  if type(targets) == "table" then for _, name in ipairs(targets) do wanted[name] = true end end
  if type(targets) == "string" then for name in targets:gmatch "[^,%s]+" do wanted[name] = true end end
  local all = targets == nil or wanted["all-linear"]
  for _, stage in ipairs(model.stages) do
    for _, layer in ipairs(set[stage.index] and stage.layers or {}) do
      if all and not layer.expert or wanted[layer.name] or wanted[layer.name:match "[^.]+$"] then list[#list + 1] = layer end
    end
  end
  return list
end

-- Operations per token: all of them; those on the way there, through the blocks from `from` on; the head's; those on the way back,
-- recompute of `rebuilt` blocks included.
local function operations(model, opt, facts, rebuilt, from)
  local c, block = model.sizes, 2 * block_size(model)
  local head, attention = 2 * c.vocabulary * c.width * (opt.supervised or 1), 2 * opt.seq_len * c.heads * c.head_size
  local above, adapter = c.layers - facts.first, facts.adapter
  local forward = (c.layers - from) * (block + attention) + 2 * adapter
  local backward = above * (block + 2 * attention) + 4 * adapter + (opt.full and c.layers * block or 0)
  local again = rebuilt * (block + attention) + (above > 0 and 2 * adapter * rebuilt / above or 0)
  local heads = (opt.full and 3 or 2) * head
  return forward + heads + backward + again, forward, heads, backward + again
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
    if opt.batch % m == 0 and (m == 1 or m * opt.seq_len <= 8192) then list[#list + 1] = m end
  end
  return list
end

-- Visits of the stages in the order in which a step makes them; see onn.sweep and Ring.uses. how: from (position of the first stage),
-- micros, heads (visits of the last stage); of the way back, if there is one: lowest (position), kept (blocks whose tapes are kept).
local function visits(model, how)
  local list, last = {}, #model.stages
  local function add(i, times, forward, backward)
    list[#list + 1] = { at = i, times = times, forward = forward, backward = backward }
  end
  for i = how.from, last - 1 do add(i, how.micros, true, false) end
  for _ = 1, how.heads do add(last, 1, true, false) end
  for i = last - 1, how.lowest or last, -1 do add(i, how.micros, i < last - how.kept, true) end
  return list
end

-- Bytes read through `slots` slots in the last of some rounds of the same uses, and of all units in them.
local function simulated(layout, units, slots, rounds)
  local _, loaded = require("onn.core.stream").simulate { units = #layout.units, slots = math.min(slots, #layout.units), schedule = units,
    rounds = rounds }
  local bytes, once, met = 0, 0, {}
  for _, unit in ipairs(loaded) do bytes = bytes + layout.bytes[unit] end
  for _, unit in ipairs(units) do
    once = once + (met[unit] and 0 or layout.bytes[unit])
    met[unit] = true
  end
  return bytes, once
end

-- What a step reads through `slots` slots once it has settled: bytes. Remembers what it has worked out.
local function reader(model, layout)
  local Ring, known = require "onn.ring", {}
  local function whole(how, slots)
    local units, passing = Ring.uses(layout, visits(model, how)), {}
    local kept, count = Ring.kept(layout, units, math.min(slots, #layout.units))
    for _, unit in ipairs(units) do if not kept[unit] then passing[#passing + 1] = unit end end
    return #passing > 0 and simulated(layout, passing, slots - count, 3) or 0
  end
  -- Row tiles: each micro-batch reads again what of the stage the slots have not kept; between visits nothing is counted as kept.
  local function visit(v, slots)
    local units = Ring.uses(layout, { { at = v.at, times = 1, forward = v.forward, backward = v.backward } })
    local again, once = simulated(layout, units, slots, 3)
    return { again = again, first = math.max(again, once) }
  end
  local function tiled(how, slots)
    local bytes = 0
    for _, v in ipairs(visits(model, how)) do
      if v.at > 1 and v.times > 0 then
        local key = ("%d/%s/%s/%s"):format(slots, v.at == #model.stages and "head" or "block", v.forward, v.backward)
        known[key] = known[key] or visit(v, slots)
        bytes = bytes + known[key].first + (v.times - 1) * known[key].again
      end
    end
    return bytes
  end
  return function(how, slots)
    local key = table.concat({ slots, how.from, how.micros, how.heads, how.lowest or "", how.kept or "" }, "/")
    if not known[key] then known[key] = (next(layout.products) and tiled or whole)(how, slots) end
    return known[key]
  end
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

-- All that does not depend on the choices: sizes, what is trained, rates.
local function facts_of(model, opt)
  local c = model.sizes
  local set, trained, lowest = layer_set(model, opt.layers)
  local modules = opt.full and {} or adapted(model, set, opt.targets)
  local adapter = 0
  for _, layer in ipairs(modules) do adapter = adapter + (layer.out + layer.into) * opt.rank end
  local f = { trained = set, count = trained, lowest = trained > 0 and lowest or nil, adapter = adapter, budget = opt.budget or math.huge,
    first = opt.full and 0 or math.min(lowest, c.layers), state = memory.state(model, opt, modules), rates = opt.rates or unknown_rates }
  f.above, f.stage = c.layers - f.first, opt.full and 1 or f.first + 2 -- stage: position of the lowest trained one
  f.resident = memory.weights(model)
  local each = model.dtype == "bf16" and 2 or 4
  f.loading, f.block_bytes, f.head_bytes = memory.loading(model), block_size(model) * each, c.vocabulary * c.width * each
  return f
end

-- Each byte that a tape keeps is taken to be moved about so many times by operations that do little else (measured on a llama of 1B
-- parameters: 0.24 s of an update of 512 tokens).
local MOVES = 10

-- Seconds of the three parts of an update: the way there, the head, and the way back, each the longer of its arithmetic and its reading;
-- the reader is only slots ahead, so a part does not wait less because another one reads less. Arithmetic: operations, weights that pass
-- through the caches once for each micro-batch, and what is moved. bytes: of weights read; spills: seconds that they take in each part.
local function seconds_of(model, opt, f, m, how, from, bytes, spills)
  local c, rates, micros, tokens = model.sizes, f.rates, math.ceil(opt.batch / how.micro), opt.batch * (opt.row_tokens or opt.seq_len)
  local _, there, head, back = operations(model, opt, f, f.above - how.kept, from)
  local pass, moved, heads = micros * f.block_bytes / rates.pass, 0, math.ceil(micros / how.together)
  for _, tape in pairs(m.tapes) do moved = moved + MOVES / rates.copy * tape * tokens / (how.micro * opt.seq_len) end
  local arithmetic = { tokens * there / rates.product + (c.layers - from) * pass + moved / 3,
    tokens * head / rates.product + 2 * heads * f.head_bytes / rates.pass, -- its weight is packed and passes again
    tokens * back / rates.product + (2 * f.above - how.kept) * pass + 2 * moved / 3 }
  local again = f.tile and micros or 1 -- row tiles pass once for each micro-batch
  local passing = { again * (c.layers - from) * f.block_bytes, heads * f.head_bytes, again * f.above * f.block_bytes }
  local reading = (bytes > 0 and bytes / rates.disk() or 0) / (passing[1] + passing[2] + passing[3])
  local seconds = bytes > 0 and f.layout.slot / rates.disk() or 0
  for part = 1, 3 do
    local io = reading * passing[part] + spills[part]
    seconds = seconds + ((how.slots == 1 or opt.prefetch == false) and arithmetic[part] + io or math.max(arithmetic[part], io))
  end
  return seconds
end

-- Ways to cut a model for the ring, coarsest first: so many blocks to a unit, then row tiles of so many bytes.
local function cuts(model, opt)
  local list, chunk = {}, opt.chunk or 1
  if chunk >= model.sizes.layers then chunk = 1 end -- a settings file says so that nothing was streamed
  while chunk >= 1 do list[#list + 1], chunk = { chunk = chunk }, math.floor(chunk / 2) end
  for _, size in ipairs(require("onn.ring").tile_sizes(model)) do list[#list + 1] = { tile = size } end
  return list
end

-- One candidate: its bytes and seconds. how: {micro, kept (blocks whose tapes are kept), together, ram (of carries), slots (nil: all
-- weights rest in memory)}.
local function candidate(model, opt, f, m, how)
  local micros = math.ceil(opt.batch / how.micro)
  local tape, rebuilt = 0, f.above - how.kept
  for index = model.sizes.layers - how.kept, model.sizes.layers - 1 do tape = tape + m.tapes[index] * micros end
  local pinned = how.kept * micros * m.carry
  local weights = how.slots and f.vectors + how.slots * f.layout.slot or f.resident
  local rounded = how.slots and f.layout.rounded or 0
  local again = rebuilt > 0 and m.rebuilt - tape or 0 -- by then the kept tapes are gone
  local work = math.max(how.kept > 0 and m.kept or 0, again, m.head(how.together, true) + rounded)
  if opt.reuse_prefix and f.first > 0 then work = work + 2 * m.carry end -- what onn.prefix copies and fetches
  local carries = math.min(how.ram, how.carries) + pinned
  local p = { weights = weights, state = f.state, tape = tape + carries, working = work + micros * m.batch + m.common,
    chunk = how.slots and f.chunk, tile = how.slots and f.tile, layout = f.layout, micro_batch = how.micro, micros = micros,
    recompute = rebuilt > 0, kept = how.kept, rebuilt = rebuilt, slots = how.slots, carries_ram = how.ram < how.carries and how.ram or nil,
    pinned = pinned, together = how.together }
  p.peak = weights + math.max(f.state + p.tape + p.working, how.slots and 0 or f.loading)
  local heads = math.ceil(micros / how.together)
  p.spill_written, p.spill_read = spilled(how, micros, m.carry, model.sizes.layers + 1 - how.kept + f.above, rebuilt)
  p.spill_space = math.min(p.spill_written, how.carries)
  local function cost(from)
    local flops = operations(model, opt, f, rebuilt, from)
    local bytes = how.slots and f.reads({ from = from > 0 and from + 2 or 1, micros = micros, heads = heads, lowest = f.stage,
      kept = how.kept }, how.slots) or 0
    local spills = { 0, 0, 0 }
    if p.spill_written > 0 then spills = { p.spill_written / f.rates.write(), 0, p.spill_read / f.rates.disk() } end
    local seconds = seconds_of(model, opt, f, m, how, from, bytes, spills)
    return flops, bytes, seconds
  end
  p.flops_per_token, p.bytes_per_step, p.seconds_per_step = cost(0)
  if opt.reuse_prefix and f.first > 0 then -- what an update of the first epoch reads of the frozen stages serves several
    p.uncached_bytes_per_step = p.bytes_per_step
    p.suffix_flops_per_token, p.suffix_bytes_per_step, p.suffix_seconds_per_step = cost(f.first)
    local step = opt.batch * (opt.row_tokens or opt.seq_len)
    local spare = math.max(0, f.budget - p.peak)
    local held = math.min(spare, (opt.all_tokens or math.huge) * 4 * model.sizes.width * 1.125) -- what no other use takes
    p.prefix_ram = math.floor(held / 1.125) -- the allocator adds up to an eighth
    p.held, p.peak = held, p.peak + held
    local ahead = p.tape + p.working + spare - held - m.rebuilt
    ahead = ahead / (2 * m.carry / (how.micro * opt.seq_len) + 64)
    p.ahead_tokens = math.max(step, math.floor(math.min(ahead, opt.all_tokens or math.huge)))
    p.ahead_ram = p.carries_ram and math.max(carries, math.floor(ahead - 64 * p.ahead_tokens)) or nil
    if how.slots then
      local frozen = f.frozen_bytes * (f.tile and micros or 1 / math.max(1, math.floor(p.ahead_tokens / step)))
      p.bytes_per_step = p.suffix_bytes_per_step + frozen
      p.seconds_per_step = p.suffix_seconds_per_step + math.max(frozen / f.rates.disk(),
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
    local m = memory.micro_batch(model, opt, { tokens = micro * opt.seq_len, lowest = f.first, trained = f.trained,
      tiled = f.tile ~= nil })
    local micros = math.ceil(opt.batch / micro)
    for _, kept in ipairs(modes) do
      for _, together in ipairs(between(1, micros, 4)) do
        local carries = micros * m.carry * (f.above - kept + 2)
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
            local p = candidate(model, opt, f, m, how)
            local spare = math.floor((f.budget - p.peak + (p.held or 0)) / f.layout.slot) -- slots go before a prefix cache in memory
            if not opt.slots and spare > 0 then
              try(p)
              how.slots = math.min(how.slots + spare, most)
              p = candidate(model, opt, f, m, how)
            end
            try(p)
            local needed = f.suffix_units -- once the prefix is known, more slots than the rest takes are of no use
            if p.suffix_seconds_per_step and how.slots > needed and not opt.slots then
              how.slots = needed
              try(candidate(model, opt, f, m, how))
            end
          else
            local p = candidate(model, opt, f, m, how)
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
  f.reads = reader(model, f.layout)
  local suffix, count = {}, 0
  for _, unit in ipairs(Ring.uses(f.layout, visits(model, { from = f.stage, micros = 1, heads = 1 }))) do
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
    local ways = cuts(model, opt)
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
  best.fits, best.minimum, best.tokens_per_step = best.peak <= f.budget, least, opt.batch * (opt.row_tokens or opt.seq_len)
  if best.slots then
    best.slot, best.streamed = best.layout.slot, 0
    for _, bytes in ipairs(best.layout.bytes) do best.streamed = best.streamed + bytes end
  end
  best.layout = nil
  return best
end

-- What running without gradients needs. opt: tokens (that go through together: of a prompt's part or a micro-batch), sequences (1),
-- cache (tokens of each that keys and values are kept for, or nil), carried (tokens under way between stages; tokens), seq_len, labels
-- (losses instead of logits), rows (of logits at once), micros (micro-batches that go through together; 1), budget,
-- chunk, slots, prefetch, rates, adapter (its bytes).
-- Returns {weights, cache, working, peak, slots, tile, ring, bytes_per_sweep, seconds_per_sweep (of reading), fits, minimum, dtype}.
function plan.inference(model, opt)
  local c, budget, rates = model.sizes, opt.budget or math.huge, opt.rates or unknown_rates
  local sequences = opt.sequences or 1
  local shape = { rank = 0, seq_len = opt.seq_len or opt.tokens }
  local m = memory.micro_batch(model, shape, { tokens = opt.tokens, lowest = c.layers, trained = {} })
  local cache = opt.cache and memory.cache(model, sequences, opt.cache) or 0
  local rows = opt.rows or sequences
  local out = opt.labels and m.head(opt.micros or 1, false) or m.head(1, false) + 2 * rows * c.vocabulary * 4
  local fixed = cache + (opt.adapter or 0) + m.common + (opt.carried or opt.tokens) * (4 * c.width + 64)
  local rest = fixed + math.max(m.kept, out)
  local p = { cache = cache, working = rest - cache, dtype = model.dtype, weights = memory.weights(model), bytes_per_sweep = 0,
    seconds_per_sweep = 0 }
  p.peak = p.weights + math.max(rest, memory.loading(model))
  p.minimum = p.peak
  local vectors, few, ways = memory.vectors(model), opt.slots or (opt.prefetch == false and 1 or 2), cuts(model, opt)
  local function look(cut) -- what units of this cut leave to be held beside them
    local layout = require("onn.ring").layout(model, cut.chunk, cut.tile)
    local beside = fixed + math.max(m.kept, out + (layout.rounded or 0))
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
    p.bytes_per_sweep = reader(model, layout)({ from = 1, micros = opt.micros or 1, heads = 1 }, p.slots)
    p.seconds_per_sweep = p.bytes_per_sweep > 0 and p.bytes_per_sweep / rates.disk() or 0
  end
  for _, cut in ipairs((opt.slots or p.peak > budget) and ways or {}) do
    if p.slots and p.peak <= budget then break end
    stream(cut)
  end
  if p.slots then look(ways[#ways]) end
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
    return plan.inference(model, { tokens = math.min(512, together), sequences = math.max(#prompts, 1), cache = longest, seq_len = longest,
      carried = together, budget = opt.budget, chunk = opt.chunk, slots = opt.slots, prefetch = opt.prefetch, adapter = adapter,
      rates = rates })
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

-- Nets other than the decoder have a plainer plan.
for _, name in ipairs { "training", "inference", "generation", "evaluation" } do
  local of_decoder = plan[name]
  plan[name] = function(model, ...)
    local decoder = model.net == require "onn.arch.decoder"
    return (decoder and of_decoder or require("onn.plan.plain")[name])(model, ...)
  end
end

return plan
