-- onn.dry(f, ...): a dry run, for what running something would take, without running it. While f runs, new tensors are phantoms: they have
-- a shape and a dtype, are counted with the allocator's own rounding and the kernels' own scratch, and hold no values. Operations compute
-- nothing, those on real tensors included, so nothing changes either. onn.core.tensor's memory() and reset_peak() speak of what is counted,
-- and dry_flops() counts products' operations.
--
-- What holds values is real also now: tensors made from a table or from bytes, and those made before. Reading a phantom's raises. So
-- whose shapes depend on values (which experts a token goes to) asks is_dry() of onn.core.tensor, or its ctx.dry, and takes the shapes
-- that cost most: all that are possible at once, such as every token at the expert that is looked at. Who keeps tensors for later calls
-- keeps none that a dry run made: these cannot be used afterwards.
--
-- All phantoms made by f are freed at its end; returns what f returns.
local core = require "onn.core.tensor"
local scope = require "onn.scope"
local trace = require "onn.trace"

local function finish(traced, ok, ...)
  core.dry_end()
  trace.on = traced
  if not ok then error((...), 0) end
  return ...
end

return function(f, ...)
  local traced = trace.on
  core.dry_begin()
  trace.on = false
  return finish(traced, pcall(scope, f, ...))
end
