-- The equitable scores of the original benchmark, kept exactly, with a word where they mislead.
local scores = {}

-- facts: loss, num_parameters, samples_per_second, batch_size, available_memory, peak_memory (bytes); weights of the mean.
function scores.equitable(facts, weights)
  weights = weights or { efficiency = 1, speed = 1, memory = 1 }
  local s = {
    efficiency = (1 - facts.loss) / facts.num_parameters * 1e10,
    speed = facts.samples_per_second / facts.batch_size * 100,
    memory = facts.available_memory / facts.peak_memory * 100,
  }
  local sum = weights.efficiency + weights.speed + weights.memory
  s.overall = (s.efficiency * weights.efficiency + s.speed * weights.speed + s.memory * weights.memory) / sum
  s.misleading = {}
  if facts.loss > 1 then s.misleading[#s.misleading + 1] = "loss above 1 turns the sign of efficiency" end
  if facts.batch_size > 1 then s.misleading[#s.misleading + 1] = "speed is 100 / step time: smaller batches score higher" end
  if s.memory > 10 * math.max(math.abs(s.efficiency), s.speed) then
    s.misleading[#s.misleading + 1] = "memory has no upper bound and dominates the mean"
  end
  return s
end

return scores
