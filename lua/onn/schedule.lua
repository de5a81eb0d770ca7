-- How the learning rate moves: up during warm-up, then constant, or down to 0 by a cosine or a line.
local schedule = {}

local falls = {
  constant = function() return 1 end,
  cosine = function(progress) return 0.5 * (1 + math.cos(math.pi * progress)) end,
  linear = function(progress) return 1 - progress end,
}

-- new{ kind, warmup, total }: kind is constant, cosine or linear; warmup a share of the updates (below 1) or their number.
-- at(step) is the factor on the learning rate for update `step` (1-based). It never begins at 0, so that no update is wasted,
-- and otherwise is the usual curve: 1 at the first update after warm-up, 0 at the one that would follow the last.
function schedule.new(opt)
  local fall = falls[opt.kind or "cosine"]
  if not fall then error(("schedule '%s' is not known; there are constant, cosine and linear"):format(opt.kind), 2) end
  local total, share = opt.total or 1, opt.warmup or 0
  if share < 0 then error("a warm-up cannot be negative", 2) end
  local warmup = math.min(share < 1 and math.ceil(share * total) or math.floor(share), total - 1)
  local self = { warmup = warmup, total = total }
  function self.at(step)
    local done = step - 1
    if done < warmup then return step / (warmup + 1) end
    return fall(math.min(1, (done - warmup) / math.max(1, total - warmup)))
  end
  return self
end

return schedule
