-- The options that say how a model larger than memory passes through it, shared by the recipes that run models.
local streaming = {}

streaming.list = {
  { "chunk", type = "integer", min = 1, default = 1,
    help = "blocks that are read together where weights are streamed; fewer where so many do not fit" },
  { "slots", type = "integer", min = 1,
    help = "stream the weights through so many slots of a chunk each (default: all rest in memory if they fit, else as many as fit)" },
  { "prefetch", negate = true, default = true, help = "read ahead of the arithmetic; --no-prefetch reads what is needed when it is" },
}

-- Puts these options behind those in `options`; returns it.
function streaming.add(options)
  for _, one in ipairs(streaming.list) do options[#options + 1] = one end
  return options
end

return streaming
