-- A model that a Lua file defines with onn.nn: its stages, its net (what onn.arch says a net is), and opening the file.
local copied = require "onn.arch.copied"
local tables = require "onn.data.tables"
local first = require "onn.nn.first"
local nearest = require "onn.nearest"
local ops = require "onn.ops"
local run = require "onn.nn.run"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local definition = {}

local function product(shape)
  local n = 1
  for _, size in ipairs(shape) do n = n * (size == "any" and 1 or size) end
  return n
end

-- Gives every module below `m` its path, and the stage their tensors and layers.
local function collect(m, path, stage)
  m.path = path
  stage.numbers = (stage.numbers or 0) + (m.out or 0)
  for _, p in ipairs(m.parameters or {}) do
    local t = { name = path .. p[1], role = path .. p[2], shape = p[3], vector = #p[3] == 1, initial = p.initial, fresh = true }
    stage.tensors[#stage.tensors + 1], stage.width = t, m.out
  end
  for _, l in ipairs(m.layers or {}) do
    stage.layers[#stage.layers + 1] = { role = path .. l.role, name = l.whole and path .. l.tensor or path, tensor = path .. l.tensor, out = l.out,
      into = l.into }
  end
  for _, child in ipairs(m.children or {}) do collect(child[2], (path == "" and "" or path .. ".") .. child[1], stage) end
end

-- A stage for each module with weights, and what follows it without; names are those of the tensors' common beginning.
local function stages_of(list)
  local stages = {}
  for i, m in ipairs(list) do
    local stage = { name = m.name or tostring(i - 1), kind = "block", layers = {}, tensors = {}, modules = { m } }
    collect(m, stage.name, stage)
    local last = stages[#stages]
    if #stage.tensors > 0 and not (last and #last.tensors == 0) then
      stage.index = #stages
      stages[#stages + 1] = stage
    elseif last then
      for _, key in ipairs { "tensors", "layers" } do for _, t in ipairs(stage[key]) do table.insert(last[key], t) end end
      table.insert(last.modules, m)
      last.width, last.numbers = stage.width or last.width, last.numbers + stage.numbers
    else
      stage.index = 0
      stages[1] = stage
    end
  end
  return stages
end

-- nll (rows) of outputs (rows, ...) against y.
local losses = {}
function losses.square(output, y)
  local rows = output:size(1)
  local wide = { rows, output:numel() / rows }
  return ops.mean(ops.square(ops.sub(ops.view(ops.contiguous(output), wide), y:view(wide))))
end

local net = { dtype = "f32", open_data = tables.open, data = "tables", custom = true }
definition.net = net

function net.first_value(_, t, seed) return first.value(t.initial[1], t.initial[2], t, seed) end

function net.batch(c, given)
  local b, message = tables.batch(given.x, given.y or given.labels, c)
  return b, message
end

function net.start(_, batch) return { x = batch.x, starts = batch.starts, rows = batch.x:size(1) } end

local function last_of(c, carry, output, ctx)
  if not ctx.labels then
    carry.logits = output
  elseif c.loss == "classes" then
    carry.nll = ops.class_loss(output, ctx.labels, ctx.loss_scale)
  else
    local f = losses[c.loss] or c.loss
    carry.nll = ops.loss(f(output, ctx.labels), ctx.loss_scale)
  end
end

function net.forward(c, stage, carry, ctx)
  local out = copied(carry)
  run.within({ weights = stage.weights, ctx = ctx, rows = carry.rows }, function()
    local x = carry.hidden or carry.x
    for _, m in ipairs(stage.modules) do x = m(x) end
    if not tensors.is_tensor(x) then error(("stage '%s' gives no tensor"):format(stage.name), 0) end
    if stage.last then last_of(c, out, x, ctx) else out.hidden = ops.view(x:contiguous(), x:shape()) end -- a handle of its own: the sweep frees it
  end)
  return out
end

local known = { "input", "loss", "name", "ids" }

-- A model: modules in their order, and
--   input   shape of a row of x, without the rows: { 8 }, { 3, 32, 32 }; "any" is a size that is not fixed
--   ids     true: x holds ids, i32, and not numbers
--   loss    "classes" (y: class numbers; outputs are logits), "square" (y like the output), or f(output, y) -> a loss for each row
-- Each module with weights is a stage: it passes through memory by itself where the model is streamed.
function definition.model(fields)
  local given = {}
  for key, value in pairs(fields) do if type(key) == "string" then given[key] = value end end
  nearest.check(given, known, "nn.model")
  if #fields == 0 then error("nn.model: there are no modules", 2) end
  if type(fields.input) ~= "table" then error("nn.model: `input`, the shape of a row of x, is needed", 2) end
  local loss = fields.loss or "square"
  if loss ~= "classes" and not losses[loss] and type(loss) ~= "function" then
    error(("nn.model: loss is 'classes', 'square' or a function, found '%s'"):format(tostring(loss)), 2)
  end
  for i, m in ipairs(fields) do
    if type(m) ~= "table" or type(m.forward) ~= "function" then error(("nn.model: entry %d is no module"):format(i), 2) end
  end
  local stages = stages_of(fields)
  local last, width, elements = stages[#stages], nil, product(fields.input)
  last.last = true
  for _, stage in ipairs(stages) do
    width = stage.width or width
    elements = elements + 32 * stage.numbers + 4 * (stage.width or 0) * #stage.modules
  end
  return { sizes = { width = width or elements, layers = #stages, positions = 2 ^ 31 - 1, outputs = loss == "classes" and width or nil,
    input = fields.input, ids = fields.ids, loss = loss, inner = math.ceil(elements / 16), names = {} }, stages = stages, net = net,
    family = { name = fields.name or "custom" } }
end

-- Runs a Lua file, as any recipe is run, and takes the model that it returns. Returns it, or nil, message, code.
function definition.open(path)
  local text, message, code = system.read_file(path, 2 ^ 24)
  if not text then return nil, message, code end
  if text:sub(1, 1) == "\27" then return nil, path .. ": this is bytecode; Lua's text is expected", "format" end
  local chunk
  chunk, message = loadstring(text, "@" .. path)
  if not chunk then return nil, message, "format" end
  local ok, model = pcall(chunk)
  if not ok then return nil, tostring(model), "format" end
  if type(model) ~= "table" or model.net ~= net then return nil, path .. ": it should end with `return nn.model { ... }`", "format" end
  model.path = path
  return model
end

-- What stands for a store where there are no weights yet.
definition.no_store = { names = function() return {} end, info = function() end, close = function() end }

return definition
