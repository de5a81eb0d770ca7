-- What a module of onn.nn finds while its stage runs: the stage's weights, the context, the batch's rows.
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"

local run = {}

local now -- {weights, ctx, starts, rows}

-- f(...) with this as what is found.
function run.within(here, f, ...)
  local outer = now
  now = here
  local ok, result = pcall(f, ...)
  now = outer
  if not ok then error(result, 0) end
  return result
end

local function present() return now or error("onn.nn: a module runs only while its model does", 3) end

-- The tensor, or the layer {weight, bias, adapter}, of a role.
function run.weight(role) return present().weights[role] or error("onn.nn: no weight '" .. role .. "' in this stage", 2) end
function run.rows() return present().rows end
function run.ctx() return present().ctx end

-- f() where the operations see `count` rows: as many for each of the batch's rows. Their sums over rows then end at the same borders, so
-- that a batch cut into micro-batches gives the same bits.
function run.by_rows(x, count, f)
  local rows = present().rows
  local each = count / rows
  if each == 1 then return f() end
  if each ~= math.floor(each) then error(("onn.nn: %s is not made of the batch's %d rows"):format(x:describe(), rows), 2) end
  local starts = {}
  for r = 0, rows do starts[r + 1] = r * each end
  return tape.with_starts(tensors.from_table(starts, "i32"), f)
end

return run
