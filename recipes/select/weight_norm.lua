-- weight_norm: blocks whose matrices are small for their size score higher: a given change moves them relatively more.
local core = require "onn.core.ops"
local scope = require "onn.scope"

return function(stages, probe)
  local scores = {}
  for i, stage in ipairs(stages) do
    local squares, count = 0, 0
    for _, t in ipairs(stage.tensors) do
      if #t.shape == 2 then
        squares = squares + scope(function() return (core.total(probe.weight(t.name), true)) end)
        count = count + t.shape[1] * t.shape[2]
      end
    end
    scores[i] = -math.sqrt(squares / count)
  end
  return scores
end
