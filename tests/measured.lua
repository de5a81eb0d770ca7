-- What updates take that run as a plan says: for the specs that hold plans to it.
local batch = require "onn.batch"
local Session = require "onn.session"
local support = require "tests.support"
local tensors = require "onn.core.tensor"

local measured = {}

-- Two updates of `micros` as plan p says, within opt.budget if there is one: the device's bytes at the largest moment, and the losses as text.
-- folder: for what is spilled. The model and the micro-batches, which count as much as p counts them, are gone afterwards.
function measured.updates(model, opt, p, micros, folder)
  collectgarbage()
  collectgarbage()
  local inputs = 0
  for _, b in ipairs(micros) do for _, t in pairs(b) do if tensors.is_tensor(t) then inputs = inputs + t:bytes() end end end
  local before = tensors.memory().used - inputs
  tensors.reset_peak()
  tensors.set_budget(before + (opt.budget or 2 ^ 40))
  assert(model:load { ring = p.ring })
  local session = assert(Session.new(model, support.merged(opt, { sweep = p.sweep, total_steps = 2,
    carries = { quota = p.carries.quota or math.huge, pinned = p.carries.pinned, scratch = p.carries.quota and folder, expected = p.carries.expected } })))
  local losses = {}
  for k = 1, 2 do losses[k] = ("%a"):format(session:update(micros, 0).loss) end
  local peak = tensors.memory().peak - before
  for _, b in ipairs(micros) do batch.free(b) end
  session:close()
  model:close()
  tensors.set_budget(2 ^ 40)
  return peak, table.concat(losses, " ")
end

return measured
