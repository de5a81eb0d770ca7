-- Plans for nets of images: onn.plan's, where an image is a row of one token. A batch goes through as a whole where it can: parts of it only
-- save memory.
local data = require "onn.data.images"
local plan = require "onn.plan"

local images = {}

-- make() for images of that size; what no plan can be made for raises one line.
local function sized(model, height, width, make)
  model.pictures = { height, width }
  local ok, result = pcall(make)
  if ok then return result end
  local line = tostring(result):match "^[^\n]*"
  if line:find "does not fit an image" then
    line = ("images of %d x %d are too small for this model: nothing is left before '%s'"):format(height, width, line:match "^[^:]+")
  end
  error(line, 0)
end

-- The best plan of make(images that go through together), which are halved while nothing fits.
local function halved(most, make)
  local micro = most
  local p = make(micro)
  while not p.fits and micro > 1 do
    micro = math.ceil(micro / 2)
    p = make(micro)
  end
  return p
end

-- A plan made within what `held` bytes of data leave of the budget.
local function beside(held, budget, make)
  local p = make((budget or math.huge) - held)
  p.working, p.peak, p.minimum = p.working + held, p.peak + held, p.minimum + held
  return p
end

-- As onn.plan's training. opt: its, with batch; set: of onn.data.images. A batch norm that is trained takes the statistics of the whole batch.
function images.training(model, opt, set, rates)
  local batch = math.min(opt.batch, set.samples)
  local function with(budget, micro)
    return plan.training(model, setmetatable({ seq_len = 1, batch = batch, micro_batch = micro, rates = rates, budget = budget }, { __index = opt }))
  end
  return sized(model, set.height, set.width, function()
    local p = beside(data.bytes(set, batch), opt.budget, function(budget)
      if opt.full then return with(budget, batch) end
      return halved(opt.micro_batch or batch, function(micro) return with(budget, micro) end)
    end)
    p.unit = "images"
    return p
  end)
end

-- As onn.plan's inference, for opt.batch images of height x width; set: of onn.data.images that they come from, or nil.
function images.inference(model, opt, height, width, set)
  return sized(model, height, width, function()
    return beside(set and data.bytes(set, opt.batch) or 0, opt.budget, function(budget)
      return plan.inference(model, setmetatable({ tokens = opt.batch, seq_len = 1, rows = opt.batch, budget = budget }, { __index = opt }))
    end)
  end)
end

return images
