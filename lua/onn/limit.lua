-- The physical limit of a run: what its bytes and operations take at this machine's measured rates, and the share of it that was
-- reached. Reading and arithmetic overlap, so the longer of the two is the limit.
local profile = require "onn.profile"
local system = require "onn.core.system"

local limit = {}

-- The nearest directory at or above `path` that is there.
local function existing(path)
  while not system.isdir(path) do path = path:match "^(.+)/[^/]*$" or path:find "^/" and "/" or "." end
  return path
end

-- The rates that a model runs at here: flops (FLOP/s, the highest measured of products in its arithmetic); product (FLOP/s) and pass
-- (bytes/s of weights), see onn.probes; copy (bytes/s within memory); disk(), write() (bytes/s at which its own files
-- are read past the page cache, and at which its disk is written to; measured when first asked for).
function limit.rates(model, scratch)
  local p = profile.get { quiet = true, sections = { "products", "passes", "memory" } }
  local rates, read, written = { flops = profile.peak_flops(p, model.dtype) }, nil, nil
  for _, one in ipairs(p.passes) do if one.dtype == model.dtype then rates.product, rates.pass = one.flops, one.bytes end end
  rates.product, rates.pass = rates.product or rates.flops, rates.pass or rates.flops -- arithmetic that is not fast here
  rates.copy = profile.memory_rate(p, "copy", 2 ^ 28)
  function rates.disk()
    read = read or profile.disk_read(model)
    return read
  end
  function rates.write()
    written = written or profile.disk_write(existing(scratch or "."), rates.disk())
    return written
  end
  return rates
end

-- work: {flops, bytes_read, bytes_written}; seconds: how long it took. Returns the share of the limit and what bound it ("compute" or
-- "disk"), and the limit in seconds.
function limit.share(work, rates, seconds)
  local compute, io = work.flops / rates.flops, 0
  if (work.bytes_read or 0) > 0 then io = io + work.bytes_read / rates.disk() end
  if (work.bytes_written or 0) > 0 then io = io + work.bytes_written / rates.write() end
  local least = math.max(compute, io)
  return least / seconds, compute >= io and "compute" or "disk", least
end

return limit
