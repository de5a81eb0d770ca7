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
local units = require "onn.units"

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

-- The plan of measure.inference() under the same options.
function measure.inference_plan(model, opt)
  local longest = math.max(opt.prompt_tokens, opt.new_tokens)
  local plans = plan.inference(model, { tokens = math.min(512, opt.prompt_tokens), carried = opt.prompt_tokens, sequences = opt.sequences,
    cache = longest, seq_len = longest, budget = opt.budget, chunk = opt.chunk, slots = opt.slots, prefetch = opt.prefetch,
    rates = opt.rates })
  if not plans.fits then
    error(("over the memory budget: at least %s are needed, %s are there"):format(units.bytes(plans.minimum), units.bytes(opt.budget)), 0)
  end
  return plans
end

-- Prompt processing and decoding in tokens/s, as llama-bench counts them: one warm-up, then `repeats` runs on random tokens.
-- opt: prompt_tokens, new_tokens, repeats, sequences (decoded together; default 1), budget (where it does not hold the model, the
-- weights are streamed), chunk, slots, prefetch. Returns two lists of tokens/s, and the plan with bytes_prefill and bytes_token: what a
-- prompt and a step of decoding read, on average.
function measure.inference(model, opt)
  local prefill, decode = {}, {}
  local sequences = opt.sequences or 1
  local plans = measure.inference_plan(model, opt)
  assert(model:load_by(plans.ring))
  plans.bytes_prefill, plans.bytes_token = 0, 0
  for run = 0, opt.repeats do
    local ids = random_ids(model, opt.prompt_tokens)
    local cache, streamed = Cache.new(model, 1, opt.prompt_tokens), model:streamed()
    local began = system.now()
    generator.prefill(model, cache, { ids })[1]:free()
    local seconds = system.now() - began
    cache:free()
    if run > 0 then
      prefill[run] = opt.prompt_tokens / seconds
      plans.bytes_prefill = plans.bytes_prefill + (model:streamed() - streamed) / opt.repeats
    end
    streamed = model:streamed()
    cache = Cache.new(model, sequences, opt.new_tokens)
    local token = {}
    began = system.now()
    for t = 1, opt.new_tokens do
      for s = 1, sequences do token[s] = ids[(t + s) % #ids + 1] end
      generator.step(model, cache, token):free()
    end
    seconds = system.now() - began
    cache:free()
    if run > 0 then
      decode[run] = opt.new_tokens * sequences / seconds
      plans.bytes_token = plans.bytes_token + (model:streamed() - streamed) / opt.repeats / opt.new_tokens
    end
  end
  return prefill, decode, plans
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

local function updates(model, opt, plans, carries)
  local session = assert(Session.new(model, { rank = opt.rank, layers = opt.layers, full = opt.full, sweep = plans.sweep, carries = carries,
    schedule = "constant", warmup = 0, total_steps = opt.steps + 1 }))
  local next_update = opt.updates or measure.random_updates(model, { batch = opt.batch, seq_len = opt.seq_len,
    micro_batch = plans.micro_batch })
  local rates, losses, seconds, tokens, began = {}, {}, {}, {}, system.now()
  local bytes = { read = {}, spilled = {} }
  for step = 0, opt.steps do
    local micros = next_update()
    if not micros then break end
    local start = system.now()
    local result = session:update(micros, 0)
    local took = system.now() - start
    for _, b in ipairs(micros) do batch.free(b) end
    losses[step + 1], seconds[step + 1], tokens[step + 1], rates[step + 1] = result.loss, took, result.tokens, result.tokens / took
    bytes.read[step + 1], bytes.spilled[step + 1] = result.bytes_streamed + result.bytes_fetched, result.bytes_spilled
    if opt.limit and step > 0 and system.now() - began + took > opt.limit then break end
  end
  local peak, first = tensors.memory().peak, seconds[1]
  session:close()
  if #seconds > 1 then
    for _, list in ipairs { seconds, rates, tokens, bytes.read, bytes.spilled } do table.remove(list, 1) end
  end
  return { rates = rates, tokens = tokens, losses = losses, seconds = seconds, first_seconds = first, plan = plans, peak = peak,
    bytes_read = measure.spread(bytes.read).mean, bytes_written = measure.spread(bytes.spilled).mean }
end

-- Training updates: tokens, tokens/s, seconds and loss of each, the plan that ran, the peak in bytes, and bytes_read and bytes_written
-- of an update (weights streamed, carries spilled). The first is not counted (memory is touched for the first time in it). The model is
-- loaded as the plan says. opt: batch, seq_len, row_tokens, supervised, micro_batch, recompute, rank, layers, full, budget, chunk, slots,
-- prefetch, rates; steps (counted updates), limit (seconds after which no second counted update begins), updates (a source of
-- updates; default: random tokens). Leaves a LoRA-trained model as it was.
function measure.training(model, opt)
  local plans = plan.training(model, opt)
  if not plans.fits then
    error(("over the memory budget: at least %s are needed, %s are there"):format(units.bytes(plans.minimum), units.bytes(opt.budget)), 0)
  end
  assert(model:load_by(plans.ring))
  tensors.reset_peak()
  local temporary = plans.carries.quota and assert(system.make_temp_dir()) or nil
  local ok, result = pcall(updates, model, opt, plans, { quota = plans.carries.quota or math.huge, pinned = plans.carries.pinned,
    expected = plans.carries.expected, scratch = temporary })
  if temporary then system.remove_tree(temporary) end
  if not ok then error(result, 0) end
  return result
end

return measure
