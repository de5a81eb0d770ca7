-- Plans for nets of images: onn.plan's, where an image is a row of one token. A batch goes through as a whole where it can: parts of it only
-- save memory.
local plan = require "onn.plan"

local images = {}

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

-- As onn.plan's training. opt: its, with batch; set: of onn.data.images. A batch norm that is trained takes the statistics of the whole batch.
function images.training(model, opt, set, rates)
  model.pictures = { set.height, set.width }
  local batch = math.min(opt.batch, set.samples)
  local p = halved(opt.full and 1 or opt.micro_batch or batch, function(micro)
    return plan.training(model, setmetatable({ seq_len = 1, batch = batch, micro_batch = opt.full and batch or micro, rates = rates }, { __index = opt }))
  end)
  p.unit = "images"
  return p
end

-- As onn.plan's inference, for opt.batch images of height x width.
function images.inference(model, opt, height, width)
  model.pictures = { height, width }
  return plan.inference(model, setmetatable({ tokens = opt.batch, seq_len = 1, rows = opt.batch }, { __index = opt }))
end

return images
