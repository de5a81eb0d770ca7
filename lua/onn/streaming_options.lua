-- The options that say how a model larger than memory passes through it, shared by the recipes that run models.
return {
  { "chunk", type = "integer", min = 1, help = "blocks that are read together where weights are streamed; fewer where so many do not fit "
    .. "(default: 1)" },
  { "slots", type = "integer", min = 1, help = "stream the weights through so many slots of one chunk (default: all in memory if they fit, "
    .. "else as many as fit)" },
  { "prefetch", negate = true, default = true, help = "read ahead of the arithmetic; --no-prefetch reads when the weights are needed" },
}
