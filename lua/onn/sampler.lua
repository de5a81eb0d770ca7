-- Choosing the next token from logits: temperature, top-k, top-p, min-p and a penalty on repetition.
local core = require "onn.core.ops"

local sampler = {}

sampler.options = { "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed" }

local NOTHING = 104 -- e^-104 is 0 beside 1 in f32

-- Tokens whose logits reach `low`, and the sum of their weights.
local function reaching(values, low, weight)
  local list, sum = {}, 0
  for i = 1, #values do
    if values[i] >= low then
      list[#list + 1] = i
      sum = sum + weight(i)
    end
  end
  return list, sum
end

-- The likeliest tokens in falling order: k of them (0 = no limit), or as many as make up the share p of those that reach `low`.
-- Sorting a whole vocabulary is slow, and the few that count lie near the best: so the search widens from there.
local function likeliest(values, best, temperature, low, weight, k, p)
  local all, total = reaching(values, low, weight)
  local margin, list, sum = 8
  repeat
    list, sum = reaching(values, math.max(low, best - margin * temperature), weight)
    margin = margin * 2
  until #list == #all or (k > 0 and #list >= k) or (k == 0 and sum >= p * total)
  table.sort(list, function(a, b) if values[a] ~= values[b] then return values[a] > values[b] end return a < b end)
  for i = #list, k + 1, -1 do if k > 0 then list[i] = nil end end
  if k > 0 then
    total = 0
    for _, i in ipairs(list) do total = total + weight(i) end
  end
  local kept = 0
  for n, i in ipairs(list) do
    kept = kept + weight(i)
    if kept >= p * total then
      for m = #list, n + 1, -1 do list[m] = nil end
      break
    end
  end
  return list
end

-- logits: f32 (vocabulary); options {temperature, top_k, top_p, min_p, repeat_penalty, seed}; recent: {[id] = true} for the penalty;
-- step: number of the draw, the counter of its random number. Returns the id (0-based).
function sampler.choose(logits, options, recent, step)
  local penalty, temperature = options.repeat_penalty or 1, options.temperature or 0
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
  local function weight(i) return math.exp((values[i] - best) / temperature) end
  local k, p, min_p = options.top_k or 0, options.top_p or 1, options.min_p or 0
  local low = best - NOTHING * temperature
  if min_p > 0 then low = math.max(low, best + temperature * math.log(min_p)) end
  local candidates = (k > 0 or p < 1) and likeliest(values, best, temperature, low, weight, k, p) or reaching(values, low, weight)
  local sum = 0
  for _, i in ipairs(candidates) do sum = sum + weight(i) end
  local u = core.random(options.seed or 0, "sampler", step) * sum
  for _, i in ipairs(candidates) do
    u = u - weight(i)
    if u < 0 then return i - 1 end
  end
  return candidates[#candidates] - 1
end

return sampler
