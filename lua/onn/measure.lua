-- Timed work for the benchmark and the search: prompt processing, decoding, training updates. Every figure is a list of repetitions.
local batch = require "onn.batch"
local Cache = require "onn.cache"
local core = require "onn.core.ops"
local generator = require "onn.generator"
local plan = require "onn.plan"
local scope = require "onn.scope"
local Session = require "onn.session"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local measure = {}

-- Mean, smallest, median, largest and standard deviation of a list.
function measure.spread(list)
  local sorted, sum = {}, 0
  for i, v in ipairs(list) do sorted[i], sum = v, sum + v end
  table.sort(sorted)
  local mean, squares = sum / #list, 0
  for _, v in ipairs(list) do squares = squares + (v - mean) ^ 2 end
  return { mean = mean, min = sorted[1], median = sorted[math.ceil(#sorted / 2)], max = sorted[#sorted],
    deviation = #list > 1 and math.sqrt(squares / (#list - 1)) or 0, samples = list }
end

-- Random ids 0..vocabulary-1, as a Lua table.
local function random_ids(model, count, seed)
  local ids = {}
  for i = 1, count do ids[i] = math.floor(core.random(seed or 0, "measure", i) * model.sizes.vocabulary) end
  return ids
end

-- Prompt processing and decoding in tokens/s, as llama-bench counts them: one warm-up, then `repeats` runs on random tokens.
-- opt: prompt_tokens, new_tokens, repeats, sequences (decoded together; default 1). Returns two lists of tokens/s.
function measure.inference(model, opt)
  local prefill, decode = {}, {}
  local sequences = opt.sequences or 1
  for run = 0, opt.repeats do
    local ids = random_ids(model, opt.prompt_tokens)
    local cache = Cache.new(model, 1, opt.prompt_tokens)
    local began = system.now()
    generator.prefill(model, cache, { ids })[1]:free()
    local seconds = system.now() - began
    cache:free()
    if run > 0 then prefill[run] = opt.prompt_tokens / seconds end
    cache = Cache.new(model, sequences, opt.new_tokens)
    local token = {}
    began = system.now()
    for t = 1, opt.new_tokens do
      for s = 1, sequences do token[s] = ids[(t + s) % #ids + 1] end
      generator.step(model, cache, token):free()
    end
    seconds = system.now() - began
    cache:free()
    if run > 0 then decode[run] = opt.new_tokens * sequences / seconds end
  end
  return prefill, decode
end

-- An endless source of updates of random tokens, each a list of micro-batches: batch rows of seq_len tokens.
function measure.random_updates(model, opt)
  local step = -1
  return function()
    step = step + 1
    local micros, ids = {}, random_ids(model, opt.batch * opt.seq_len, step)
    for first = 1, opt.batch, opt.micro_batch do
      local rows = {}
      for r = first, math.min(first + opt.micro_batch, opt.batch + 1) - 1 do
        rows[#rows + 1] = { unpack(ids, (r - 1) * opt.seq_len + 1, r * opt.seq_len) }
      end
      micros[#micros + 1] = scope(function() return batch.from_ids(tensors.from_table(rows, "i32"), nil, first - 1) end)
    end
    return micros
  end
end

-- Training updates: tokens, tokens/s, seconds and loss of each, the plan that ran and the peak in bytes. The first is not counted
-- (memory is touched for the first time in it). opt: batch, seq_len, micro_batch, recompute, rank, layers, full, budget; steps (counted
-- updates), limit (seconds after which no second counted update begins), updates (a source of updates; default: random tokens).
-- Leaves a LoRA-trained model as it was.
function measure.training(model, opt)
  local plans = plan.training(model, opt)
  local session = assert(Session.new(model, { rank = opt.rank, layers = opt.layers, full = opt.full, sweep = plans.sweep,
    schedule = "constant", warmup = 0, total_steps = opt.steps + 1 }))
  local next_update = opt.updates or measure.random_updates(model, { batch = opt.batch, seq_len = opt.seq_len,
    micro_batch = plans.micro_batch })
  local rates, losses, seconds, tokens, began = {}, {}, {}, {}, system.now()
  tensors.reset_peak()
  for step = 0, opt.steps do
    local micros = next_update()
    if not micros then break end
    local start = system.now()
    local result = session:update(micros, 0)
    local took = system.now() - start
    for _, b in ipairs(micros) do batch.free(b) end
    losses[step + 1], seconds[step + 1], tokens[step + 1], rates[step + 1] = result.loss, took, result.tokens, result.tokens / took
    if opt.limit and step > 0 and system.now() - began + took > opt.limit then break end
  end
  local peak, first = tensors.memory().peak, seconds[1]
  session:close()
  if #seconds > 1 then
    table.remove(seconds, 1)
    table.remove(rates, 1)
    table.remove(tokens, 1)
  end
  return { rates = rates, tokens = tokens, losses = losses, seconds = seconds, first_seconds = first, plan = plans, peak = peak }
end

return measure
