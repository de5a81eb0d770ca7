-- Choosing the next token from logits: temperature, top-k, top-p, min-p and a penalty on repetition.
local core = require "onn.core.ops"

local sampler = {}

-- logits: f32 (vocabulary); options {temperature, top_k, top_p, min_p, repeat_penalty, seed}; recent: {[id] = true} for the penalty;
-- step: number of the draw, the counter of its random number. Returns the id (0-based).
function sampler.choose(logits, options, recent, step)
  local penalty = options.repeat_penalty or 1
  local temperature = options.temperature or 0
  if temperature == 0 and penalty == 1 then return core.reduce(logits, "argmax"):item() end
  local values = logits:totable()
  if penalty ~= 1 then
    for id in pairs(recent) do
      local v = values[id + 1]
      values[id + 1] = v > 0 and v / penalty or v * penalty
    end
  end
  local best, at = -math.huge, 1
  for i = 1, #values do if values[i] > best then best, at = values[i], i end end
  if temperature == 0 then return at - 1 end
  local candidates, n = {}, 0
  local floor = options.min_p and options.min_p > 0 and best + temperature * math.log(options.min_p) or -math.huge
  for i = 1, #values do
    if values[i] >= floor and values[i] > best - 104 * temperature then -- below that e^x is 0 beside the best in f32
      n = n + 1
      candidates[n] = i
    end
  end
  local k, p = options.top_k or 0, options.top_p or 1
  if k > 0 or p < 1 then
    table.sort(candidates, function(a, b) if values[a] ~= values[b] then return values[a] > values[b] end return a < b end)
    if k > 0 then n = math.min(n, k) end
  end
  local weights, sum = {}, 0
  for i = 1, n do
    weights[i] = math.exp((values[candidates[i]] - best) / temperature)
    sum = sum + weights[i]
  end
  if p < 1 then
    local kept = 0
    for i = 1, n do
      kept = kept + weights[i]
      if kept >= p * sum then n, sum = i, kept break end
    end
  end
  local u = core.random(options.seed or 0, "sampler", step) * sum
  for i = 1, n do
    u = u - weights[i]
    if u < 0 then return candidates[i] - 1 end
  end
  return candidates[n] - 1
end

return sampler
