-- Rows of a benchmark: each a set of choices with what was measured under it, and that as shares of what the machine allows.
local json = require "onn.core.json"
local limit = require "onn.limit"
local measure = require "onn.measure"
local memory = require "onn.plan.memory"
local plan = require "onn.plan"
local profile = require "onn.profile"
local scores = require "onn.scores"
local seed_workload = require "onn.seed_workload"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local benchmark = {}

-- Every combination of the lists in `choices` {{key, list}, ...}: tables of key = value, the last key changing fastest.
function benchmark.product(choices)
  local rows = { {} }
  for _, choice in ipairs(choices) do
    local longer = {}
    for _, row in ipairs(rows) do
      for _, value in ipairs(choice[2]) do
        local copy = { [choice[1]] = value }
        for k, v in pairs(row) do copy[k] = v end
        longer[#longer + 1] = copy
      end
    end
    rows = longer
  end
  return rows
end

local function block_weights(model)
  local total = 0
  for _, item in ipairs(model:linear_layers()) do total = total + item.layer.out * item.layer.into end
  return total
end

-- The least time of prompt processing and decoding on this machine, as tokens/s: arithmetic, and one reading of the weights from memory.
-- streamed {prefill, token, rate}: bytes that a prompt and a token read from the disk, and its bytes/s; reading and arithmetic overlap.
function benchmark.inference_limits(model, p, prompt_tokens, streamed)
  local c, weights = model.sizes, memory.weights(model)
  local flops = 2 * block_weights(model) + c.layers * 2 * prompt_tokens * c.heads * c.head_size
    + 2 * c.vocabulary * c.width / prompt_tokens -- the head gives the last token's logits alone
  local embedding = not c.tied and memory.weight(model, model.stages[1].tensors[1]) or 0 -- rows of it are read, not all
  local prefill, decode = profile.peak_flops(p, model.dtype) / flops, profile.memory_rate(p, "read", weights) / (weights - embedding)
  if streamed and streamed.prefill > 0 then prefill = math.min(prefill, prompt_tokens * streamed.rate / streamed.prefill) end
  if streamed and streamed.token > 0 then decode = math.min(decode, streamed.rate / streamed.token) end
  return prefill, decode
end

local function inference_options(row, opt, rates)
  return { prompt_tokens = row.prompt_tokens, new_tokens = row.new_tokens, repeats = opt.repeats, budget = opt.budget, chunk = row.chunk,
    slots = opt.slots, prefetch = opt.prefetch, rates = rates }
end

-- Runs f, a measurement; what did not fit is said in the row. Returns whether it went well, and f's results.
local function attempt(row, f, ...)
  local results = { pcall(f, ...) }
  if results[1] then return unpack(results) end
  local message = tostring(results[2])
  if not message:find "memory budget" then error(results[2], 0) end
  row.outcome, row.message = "oom_device", message:match "memory budget[^\n]*"
  return false
end

-- The plan of a row's prompts and decoding; nil where they do not fit, which the row then says.
function benchmark.inference_plan(row, model, opt, rates)
  local ok, plans = attempt(row, measure.inference_plan, model, inference_options(row, opt, rates))
  return ok and plans or nil
end

-- Puts prompt processing and decoding into a row with prompt_tokens and new_tokens. p: the profile; rates: onn.limit's.
function benchmark.inference(row, model, p, opt, rates)
  local ok, prefill, decode, plans = attempt(row, measure.inference, model, inference_options(row, opt, rates))
  if not ok then return end
  local a, b = measure.spread(prefill), measure.spread(decode)
  local streamed = plans.bytes_prefill + plans.bytes_token > 0
    and { prefill = plans.bytes_prefill, token = plans.bytes_token, rate = rates.disk() } or nil
  local prefill_limit, decode_limit = benchmark.inference_limits(model, p, row.prompt_tokens, streamed)
  row.prefill_tokens_per_s, row.prefill_deviation, row.prefill_samples = a.mean, a.deviation, json.array(prefill)
  row.decode_tokens_per_s, row.decode_deviation, row.decode_samples = b.mean, b.deviation, json.array(decode)
  row.prefill_limit_share, row.decode_limit_share = a.mean / prefill_limit, b.mean / decode_limit
  row.prefill_bytes_streamed, row.decode_bytes_streamed, row.decode_slots = plans.bytes_prefill, plans.bytes_token, plans.slots
end

local function training_options(row, opt, rates)
  return { batch = row.batch, seq_len = row.seq_len, rank = opt.rank, layers = opt.layers, micro_batch = opt.micro_batch,
    recompute = opt.recompute, budget = opt.budget, chunk = row.chunk, slots = opt.slots, prefetch = opt.prefetch, rates = rates }
end

-- The plan of a row's training, and the tokens/s that the machine's arithmetic and its disk allow for it.
function benchmark.plan(row, model, opt, rates)
  local plans = plan.training(model, training_options(row, opt, rates))
  local work = { flops = plans.flops_per_token * plans.tokens_per_step, bytes_read = plans.bytes_per_step + plans.spill_read,
    bytes_written = plans.spill_written }
  local _, _, least = limit.share(work, rates, 1)
  return plans, plans.tokens_per_step / least
end

-- Puts training into a row with batch, chunk and seq_len: LoRA updates on random tokens. What does not fit is said in row.outcome.
function benchmark.training(row, model, p, opt, rates)
  local how = training_options(row, opt, rates)
  how.steps, row.outcome, row.tokens_per_sample = opt.steps, row.outcome or "ok", row.seq_len
  local ok, r = attempt(row, measure.training, model, how)
  if not ok then return end
  local spread, plans = measure.spread(r.rates), r.plan
  row.micro_batch, row.recompute, row.trained_layers = plans.micro_batch, plans.recompute, plans.trained_layers
  row.slots, row.chunk_used, row.tile_bytes = plans.slots, plans.chunk or nil, plans.tile or nil
  row.bytes_streamed, row.bytes_spilled = r.bytes_read, r.bytes_written
  local once = plan.training(model, { batch = row.batch, seq_len = row.seq_len, rank = opt.rank, layers = opt.layers,
    micro_batch = plans.micro_batch, recompute = "off" })
  row.train_tokens_per_s, row.train_deviation, row.train_samples = spread.mean, spread.deviation, json.array(r.rates)
  row.train_ms_per_sample, row.peak_bytes, row.loss = 1000 * row.seq_len / spread.mean, r.peak, r.losses[1]
  row.predicted_seconds, row.seconds, row.predicted_peak_bytes = plans.seconds_per_step, measure.spread(r.seconds).median, plans.peak
  -- of this plan, operations done again included
  row.train_limit_share, row.bound = limit.share({ flops = plans.flops_per_token * plans.tokens_per_step, bytes_read = r.bytes_read,
    bytes_written = r.bytes_written }, rates, plans.tokens_per_step / spread.mean)
  row.mfu = spread.mean * once.flops_per_token / profile.peak_flops(p, model.dtype) -- of the model's own operations
  local s = scores.equitable { loss = r.losses[1], num_parameters = model:parameters(), samples_per_second = spread.mean / row.seq_len,
    batch_size = row.batch, available_memory = system.available_ram(), peak_memory = r.peak }
  for key, value in pairs(s) do
    if type(value) == "number" then row["score_" .. key] = value end
  end
  row.misleading = json.array(s.misleading)
end

-- One row of the original's workload. model: of seed_workload.open with `layers` blocks.
function benchmark.seed(row, model, p, opt)
  tensors.reset_peak()
  local seconds, list = {}, {}
  for step = 0, opt.steps do
    local loss, took = seed_workload.update(model, row.batch, opt.seed)
    row.loss = row.loss or loss
    seconds[#seconds + 1] = took
    if step == 0 and took > 20 then break end -- so long that a warm-up does not show
  end
  if #seconds > 1 then table.remove(seconds, 1) end
  for i, s in ipairs(seconds) do list[i] = 1000 * s / row.batch end
  local spread, flops = measure.spread(list), seed_workload.flops_per_sample(row.layers)
  row.ms_per_sample, row.deviation, row.samples = spread.mean, spread.deviation, json.array(list)
  row.original_ms_per_sample = seed_workload.original.ms_per_sample[row.batch]
  row.tokens_per_sample, row.gflop_per_sample = seed_workload.tokens_per_sample, flops / 1e9
  row.train_tokens_per_s = 1000 * seed_workload.tokens_per_sample / spread.mean
  row.gflops = flops / spread.mean / 1e6
  row.limit_share, row.bound = row.gflops * 1e9 / profile.peak_flops(p, "f32"), "compute"
  row.weight_bytes, row.peak_bytes = seed_workload.bytes(row.layers), tensors.memory().peak
  row.ms_per_sample_of_8_layers = spread.mean * seed_workload.layers / row.layers
end

local function cell(value)
  if value == nil or value == json.null then return "" end
  if type(value) == "boolean" then return value and "yes" or "no" end
  if type(value) ~= "number" then return tostring(value) end
  if value == math.floor(value) and math.abs(value) < 1e15 then return ("%.0f"):format(value) end
  return ("%.4g"):format(value)
end

-- Rows as a Markdown table or as CSV, with these columns.
function benchmark.markdown(rows, columns)
  local lines = { "| " .. table.concat(columns, " | ") .. " |", "|" .. ("---|"):rep(#columns) }
  for _, row in ipairs(rows) do
    local cells = {}
    for i, key in ipairs(columns) do cells[i] = cell(row[key]) end
    lines[#lines + 1] = "| " .. table.concat(cells, " | ") .. " |"
  end
  return table.concat(lines, "\n")
end

function benchmark.csv(rows, columns)
  local lines = { table.concat(columns, ",") }
  for _, row in ipairs(rows) do
    local cells = {}
    for i, key in ipairs(columns) do
      local text = type(row[key]) == "number" and ("%.9g"):format(row[key]) or cell(row[key])
      cells[i] = text:find '[,"\n]' and '"' .. text:gsub('"', '""') .. '"' or text
    end
    lines[#lines + 1] = table.concat(cells, ",")
  end
  return table.concat(lines, "\n")
end

return benchmark
