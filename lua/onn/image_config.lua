-- What a new net for images takes over from its data, into its config: number and names of the classes, channels, size of the pictures.
local images = require "onn.data.images"

-- Fills in what `config` lacks. data: a source of onn.data.images; opt: image_size. Returns true, or nil, message, code.
return function(config, data, opt)
  local probe = { sizes = { channels = config.num_channels or 3, classes = math.huge, image_size = config.image_size }, config = config }
  local set, message, code = images.open(data, probe, opt)
  if not set then return nil, message, code end
  local most = 0
  for _, label in ipairs(set.labels) do most = math.max(most, label + 1) end
  config.num_classes = config.num_classes or config.num_labels or set.classes and #set.classes or most
  if set.classes and not config.labels then config.labels = set.classes end
  config.image_size = config.image_size or set.height == set.width and set.height or nil
  config.image_mean, config.image_std = set.mean, set.deviation
  if set.x then set.x:free() end
  return true
end
