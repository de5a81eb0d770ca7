-- The search for execution settings: micro-batch, recompute, threads; chunk and slots where weights are streamed. They do not change
-- what is learnt, so they are tuned by the seconds of real updates; tokens per update stay as they are. Trials run in processes of
-- their own (onn.trial), interleaved with the default's; the default wins unless another is faster by more than the noise.
local measure = require "onn.measure"
local plan = require "onn.plan"
local profile = require "onn.profile"
local system = require "onn.core.system"
local trial = require "onn.trial"

local search = {}

local tolerance = 1e-4  -- of the first loss against the default's, relative: the arithmetic is the same
local least_gain = 0.02 -- a smaller gain is no reason to leave the default
local share_of_first = 0.55 -- of the budget, for the first look at each candidate

-- --- prediction ---------------------------------------------------------------------------------------------------------

-- FLOP/s of products of so many rows with so many threads, from the profile.
local function product_rate(p, dtype, rows, threads)
  local best, at = 0, 0
  for _, one in ipairs(p.products) do
    if one.dtype == dtype and one.rows <= math.max(rows, 1) and one.rows >= at then
      best, at = one.rows > at and one.flops or math.max(best, one.flops), one.rows
    end
  end
  local all, some = 1, 1
  for _, one in ipairs(p.threads or {}) do
    if one.dtype == dtype then
      all = one.flops -- the last has all threads
      if one.threads <= threads then some = one.flops end
    end
  end
  return (best > 0 and best or profile.peak_flops(p, dtype)) * math.min(1, some / all)
end

-- Does a plan wait for the disk at all?
local function uses_disk(plans) return plans.slots ~= nil or plans.spill_written > 0 end

-- The two terms of an update's time: in seconds arithmetic at the profile's rate, or the plan's prediction where the disk has a part in
-- it; and the number of micro-batches.
local function terms(s, c)
  if uses_disk(c.plan) then return c.plan.seconds_per_step, s.rows / c.micro_batch end
  return c.plan.flops_per_token * s.tokens / product_rate(s.profile, s.model.dtype, c.micro_batch * s.seq_len, c.threads),
    s.rows / c.micro_batch
end

-- Seconds of one update: each term with its correction from the trials so far.
local function predict(s, c)
  local compute, micros = terms(s, c)
  return s.fit.compute * compute + s.fit.micro * micros
end

-- Fits both corrections to what was measured, by least squares of relative errors; with one or two trials only the first.
local function fit(s, list)
  local xx, xy, yy, x1, y1, n = 0, 0, 0, 0, 0, 0
  for _, c in ipairs(list) do
    if c.median then
      local measured = s.tokens / c.median
      local compute, micros = terms(s, c)
      local x, y = compute / measured, micros / measured
      xx, xy, yy, x1, y1, n = xx + x * x, xy + x * y, yy + y * y, x1 + x, y1 + y, n + 1
    end
  end
  local determinant = xx * yy - xy * xy
  local compute, micro = x1 / xx, 0
  if n > 2 and determinant > 1e-9 * xx * yy then
    local a, b = (x1 * yy - y1 * xy) / determinant, (xx * y1 - xy * x1) / determinant
    if a >= 0 and b >= 0 then compute, micro = a, b end
  end
  s.fit = { compute = compute, micro = micro }
end

-- --- candidates ---------------------------------------------------------------------------------------------------------

-- Rates for the plan of a candidate: the machine's, with the share of its arithmetic that so many threads reach.
local function rates_of(s, threads)
  local share = product_rate(s.profile, s.model.dtype, 256, threads) / product_rate(s.profile, s.model.dtype, 256, system.cpu_count())
  return { product = s.rates.product * share, pass = s.rates.pass, copy = s.rates.copy, disk = s.rates.disk, write = s.rates.write }
end

local function planned(s, c)
  return plan.training(s.model, { batch = s.rows, micro_batch = c.micro_batch, seq_len = s.seq_len, row_tokens = s.row_tokens,
    supervised = s.supervised, rank = s.rank, layers = s.layers, recompute = c.mode, budget = s.budget, chunk = c.chunk,
    slots = c.slots, rates = rates_of(s, c.threads) })
end

local function powers(most)
  local list, n = {}, 1
  while n < most do list[#list + 1], n = n, n * 2 end
  list[#list + 1] = most
  return list
end

local searched = { "micro_batch", "mode", "threads", "chunk", "slots" }

-- How many settings differ, and one of them.
local function differences(a, b)
  local n, which = 0, nil
  for _, key in ipairs(searched) do
    if a[key] ~= b[key] then n, which = n + 1, key end
  end
  return n, which
end

-- What each setting can be, the default's value first. Where the default streams weights, more blocks may be read together, and weights
-- may have fewer slots than fit, which leaves more memory to tapes; elsewhere neither has a meaning.
local function choices(s, default, usual)
  local list = { micro_batch = { default.micro_batch }, mode = { default.mode }, threads = { default.threads }, chunk = { default.chunk },
    slots = { default.slots or false } }
  local function add(key, value) if value ~= list[key][1] then table.insert(list[key], value) end end
  if not s.fixed.micro_batch then
    for m = s.rows, 1, -1 do if s.rows % m == 0 then add("micro_batch", m) end end
  end
  if (s.fixed.recompute or "auto") == "auto" then
    add("mode", "off")
    add("mode", "on")
  end
  if not s.fixed.threads then for _, n in ipairs(powers(system.cpu_count())) do add("threads", n) end end
  if usual.slots then
    for _, n in ipairs { 1, 2, 4 } do if n <= s.model.sizes.layers then add("chunk", n) end end
    for _, n in ipairs { 2, 4 } do if n < usual.slots then add("slots", n) end end
  end
  return list
end

-- All settings that differ from the default in at most three things, or two where weights are streamed; the default first, then those
-- that differ in one thing, then in more; by predicted time.
local function candidates(s)
  local fixed = s.fixed
  local default = { micro_batch = fixed.micro_batch, mode = fixed.recompute or "auto", threads = fixed.threads or system.cpu_count(),
    chunk = 1 }
  local usual = planned(s, default)
  default.micro_batch = usual.micro_batch
  if usual.kept == 0 or not usual.recompute then default.mode = usual.recompute and "on" or "off" end -- else "auto": some are kept
  local list, of = {}, choices(s, default, usual)
  local function add(micro, mode, threads, chunk, slots)
    local c = { micro_batch = micro, mode = mode, threads = threads, chunk = chunk, slots = slots or nil, rates = {}, outcome = "not tried" }
    c.changes, c.kind = differences(c, default)
    if c.changes > (usual.slots and 2 or 3) then return end
    c.plan = planned(s, c)
    c.recompute, c.blocks_kept, c.predicted = c.plan.recompute, c.plan.kept, predict(s, c)
    if not c.plan.fits then c.outcome = "does not fit" end
    list[#list + 1] = c
  end
  for _, micro in ipairs(of.micro_batch) do
    for _, mode in ipairs(of.mode) do
      for _, threads in ipairs(of.threads) do
        for _, chunk in ipairs(of.chunk) do
          for _, slots in ipairs(of.slots) do add(micro, mode, threads, chunk, slots) end
        end
      end
    end
  end
  table.sort(list, function(a, b)
    if a.changes ~= b.changes then return a.changes < b.changes end
    if a.predicted ~= b.predicted then return a.predicted < b.predicted end
    return a.plan.peak < b.plan.peak
  end)
  list[1].default = true
  local turn = {} -- each kind of change is looked at before a second of any kind
  for i, c in ipairs(list) do
    local kind = c.changes == 1 and c.kind or "other"
    turn[kind] = (turn[kind] or 0) + 1
    c.turn = c.changes * 1e6 + (c.changes == 1 and turn[kind] or 0) * 1e3 + i
  end
  table.sort(list, function(a, b) return a.turn < b.turn end)
  return list
end

-- --- trials -------------------------------------------------------------------------------------------------------------

local function remaining(s) return s.deadline - system.now() end

-- Rates by which a trial's process makes the candidate's plan: the ones it was made by here.
function search.trial_rates(s, c)
  if not uses_disk(c.plan) then return nil end
  local r = rates_of(s, c.threads)
  return { product = r.product, pass = r.pass, copy = r.copy, disk = r.disk(), write = r.write() }
end

-- One visit: an update that is not counted and up to `steps` that are, in about `limit` seconds, less where the budget ends. Returns
-- false when the budget does not allow even one.
local function visit(s, c, steps, limit)
  local step = c.median and s.tokens / c.median or predict(s, c)
  if not c.median then c.predicted = step end
  if s.reference then limit = math.max(0, math.min(limit, remaining(s) - s.overhead)) end
  local expected = s.overhead + math.max(2 * step, math.min((steps + 1) * step, limit + step))
  if s.reference and expected > remaining(s) then return false end
  local patience = 3 * expected + 1
  local timeout = s.reference and math.min(patience, remaining(s)) or math.max(patience + 10, remaining(s))
  local result = trial.run({ model = s.path, dtype = s.model.dtype, data = s.data, pack = s.pack, batch = s.rows, seq_len = s.seq_len,
    row_tokens = s.row_tokens, supervised = s.supervised, micro_batch = c.micro_batch, recompute = c.mode, threads = c.threads,
    chunk = c.chunk, slots = c.slots, rates = search.trial_rates(s, c), rank = s.rank, layers = s.layers_text, seed = s.seed,
    memory = s.budget, steps = steps, limit = limit }, timeout)
  if result.outcome == "timeout" and (timeout < patience or c.median) then return false end -- the budget's end, or once slow
  c.visits, c.outcome, c.message = (c.visits or 0) + 1, result.outcome, result.message
  if result.outcome ~= "ok" then return true end
  if not s.reference then s.reference = result.loss end
  c.loss, c.peak, c.rss = result.loss, math.max(c.peak or 0, result.peak), math.max(c.rss or 0, result.rss)
  c.bytes_read, c.bytes_written = result.bytes_read, result.bytes_written
  if math.abs(result.loss - s.reference) > tolerance * math.abs(s.reference) then
    c.outcome = "mismatch"
    c.message = ("first loss %.6f, the default's is %.6f"):format(result.loss, s.reference)
    return true
  end
  local spent, tokens = 0, 0
  for i, rate in ipairs(result.rates) do
    c.rates[#c.rates + 1] = rate
    spent, tokens = spent + result.seconds[i], tokens + result.tokens[i]
  end
  c.spread = measure.spread(c.rates)
  c.median = c.spread.median
  s.tokens = tokens / #result.tokens
  s.overhead = math.max(0.02, 0.5 * s.overhead + 0.5 * (result.wall - spent * (1 + 1 / #result.rates)))
  return true
end

-- What failed for want of memory rules out all that needs more.
local function rule_out(list, c)
  for _, other in ipairs(list) do
    if other.outcome == "not tried" and other.plan.peak >= c.plan.peak then
      other.outcome, other.message = "does not fit", "a smaller one did not"
    end
  end
end

local function usable(list)
  local kept = {}
  for _, c in ipairs(list) do if c.outcome == "ok" then kept[#kept + 1] = c end end
  table.sort(kept, function(a, b) return a.median > b.median end)
  return kept
end

-- How far a median can be off: by the quartiles, or a tenth where there are too few figures to tell.
local function noise(c)
  local sorted = {}
  for i, v in ipairs(c.rates) do sorted[i] = v end
  table.sort(sorted)
  local n = #sorted
  if n < 3 then return 0.1 * c.median end
  return (sorted[math.ceil(0.75 * n)] - sorted[math.ceil(0.25 * n)]) / 2 / math.sqrt(n / 3)
end

-- Faster than the default by more than the noise of both, or the default.
local function choose(list)
  local default, ranked = list[1], usable(list)
  for _, c in ipairs(ranked) do
    if c == default then break end
    local gain = c.median - default.median
    if gain > least_gain * default.median and gain > noise(c) + noise(default) then return c end
  end
  return default
end

-- --- judging the prediction ---------------------------------------------------------------------------------------------

local function ranks(list, key)
  local order = {}
  for i = 1, #list do order[i] = i end
  table.sort(order, function(a, b) return list[a][key] < list[b][key] end)
  local rank = {}
  for r, i in ipairs(order) do rank[i] = r end
  return rank
end

-- How good the predictions were that the search made before it tried each candidate: median relative error, and Spearman's rank
-- correlation with what was measured. The default, from which the corrections start, is not among them.
local function judge(s, ranked)
  local list, errors = {}, {}
  for _, c in ipairs(ranked) do
    if not c.default then
      local measured = s.tokens / c.median
      list[#list + 1] = { predicted = c.predicted, measured = measured }
      errors[#errors + 1] = math.abs(c.predicted - measured) / measured
    end
  end
  local n, sum = #list, 0
  if n == 0 then return { trials = 0 } end
  local a, b = ranks(list, "predicted"), ranks(list, "measured")
  for i = 1, n do sum = sum + (a[i] - b[i]) ^ 2 end
  return { trials = n, median_error = measure.spread(errors).median, rank_correlation = n > 2 and 1 - 6 * sum / (n * (n * n - 1)) or nil }
end

-- Candidates that no other beats in both speed and memory.
local function front(ranked)
  local list, least = {}, math.huge
  for _, c in ipairs(ranked) do
    if c.peak < least then
      c.pareto, least = true, c.peak
      list[#list + 1] = c
    end
  end
  return list
end

-- s: {path, model, profile, rates (onn.limit's), budget (bytes), deadline (system.now), rows, row_tokens, supervised (share of
-- the tokens), seq_len, rank, layers, layers_text, data, pack, seed, fixed {micro_batch, recompute, threads},
-- progress(done, total, note)}. Returns {default, winner, ranked, front, all, judgement, tokens (of one update),
-- seconds}, or nil and why the default itself could not be run.
function search.run(s)
  local began = system.now()
  s.fit, s.overhead, s.tokens = { compute = 2, micro = 0 }, 0.3, s.rows * s.row_tokens
  local list = candidates(s)
  local default, done, total = list[1], 0, 1
  local function tell(c)
    done = done + 1
    local room = math.ceil(remaining(s) / ((system.now() - began) / done)) -- more trials than that do not fit into the budget
    if s.progress then s.progress(done, math.max(done, math.min(total, done + math.max(0, room))), c) end
  end
  local whole = s.deadline - began
  if s.progress then s.progress(0, 1, default) end
  visit(s, default, 3, math.min(2, whole / 8))
  if default.outcome ~= "ok" then return nil, ("the default settings failed (%s): %s"):format(default.outcome, default.message or "") end
  local tried = {}
  for i = 2, #list do if list[i].outcome == "not tried" then tried[#tried + 1] = list[i] end end
  total = #tried + 1
  fit(s, list)
  tell(default)
  local first_end = began + share_of_first * whole
  for _, c in ipairs(tried) do
    if system.now() > first_end then break end
    local share = math.max(0.05, (first_end - system.now()) / #tried - s.overhead)
    if c.outcome == "not tried" and visit(s, c, 3, math.min(2, share)) then
      tell(c)
      fit(s, list)
      if c.outcome == "oom_device" or c.outcome == "oom_host" then rule_out(list, c) end
    end
  end
  -- the best three and the default in turn, so that a change of the machine's load meets all of them
  for round = 1, 4 do
    local best, seen = usable(list), { [default] = true }
    local turn = { default }
    for i = 1, math.min(round < 3 and 3 or 2, #best) do
      if not seen[best[i]] then seen[best[i]], turn[#turn + 1] = true, best[i] end
    end
    total = done + #turn * (5 - round)
    if #turn == 1 then break end
    for _, c in ipairs(turn) do
      if visit(s, c, round < 3 and 9 or 27, math.min(2, whole / 20)) then tell(c) end
    end
    if remaining(s) < s.overhead + 2 * s.tokens / default.median then break end
  end
  local ranked = usable(list)
  return { default = default, winner = choose(list), ranked = ranked, front = front(ranked), all = list, judgement = judge(s, ranked),
    tokens = s.tokens, seconds = system.now() - began }
end

return search
