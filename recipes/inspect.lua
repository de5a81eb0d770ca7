-- inspect: what a model is, and whether it can be run
local cli = require "onn.cli"
local inspect = require "onn.inspect"
local model_options = require "onn.model_options"
local plan = require "onn.plan"
local units = require "onn.units"

local opt = cli.parse {
  name = "inspect",
  summary = "Says what MODEL is: parameters, bytes, stages and tensors; what can be run, and what is missing for it. Reads headers only.",
  example = "onn inspect models/smollm2",
  arguments = { { "MODEL", "model directory, .safetensors file, or org/name in the hub cache" } },
  options = model_options.add { { "all", help = "list every stage and tensor" } },
}
local a, model = inspect.analyse(opt.model, model_options.of(opt))
cli.check(a, model)

local needs = {}
if a.runnable and not model:unfit "tokens" then
  local seq_len = math.min(512, model.sizes.positions)
  local text = { tokens = seq_len, cache = 256 }
  local update = { rank = 8, batch = 8, micro_batch = 1, seq_len = seq_len, recompute = "on" }
  needs.generate, needs.train = plan.inference(model, text).minimum, plan.training(model, update).peak
  text.budget, update.budget = 1, 1 -- nothing fits: the least that streaming takes
  needs.generate_streamed, needs.train_streamed = plan.inference(model, text).minimum, plan.training(model, update).minimum
  a.needs_bytes, a.compute_dtype = needs, model.dtype
end
if opt.json then
  cli.json(a)
  os.exit(0)
end

local dtypes = {}
for dtype, count in pairs(a.dtypes) do dtypes[#dtypes + 1] = ("%s %s"):format(dtype, units.count(count)) end
table.sort(dtypes)
local function grouped(n) return (("%.0f"):format(n):reverse():gsub("(%d%d%d)", "%1,"):reverse():gsub("^,", "")) end
cli.print(("model         %s\narchitecture  %s (%s)\nparameters    %s (%s)\nbytes         %s\nlayers        %d, width %s"):format(a.path,
  a.architecture, a.architecture_type, grouped(a.total_params), table.concat(dtypes, ", "), units.bytes(a.total_bytes), a.num_layers,
  table.concat(a.hidden_sizes, ", ")))
if #a.buffers > 0 then cli.print(("buffers       %d tensors that are state, not parameters"):format(#a.buffers)) end

-- Stages that look alike and follow each other are one line.
local function shape_of(t) return "(" .. table.concat(t.shape, ", ") .. ")" end
local function likeness(stage)
  local parts = { stage.kind }
  for _, t in ipairs(stage.tensors) do
    local relative = t.name:sub(1, #stage.name) == stage.name and t.name:sub(#stage.name + 1) or t.name
    parts[#parts + 1] = relative:gsub("_l%d+", "_l") .. shape_of(t) .. t.dtype
  end
  return table.concat(parts, "|")
end
local rows, last = {}, nil
for _, stage in ipairs(a.stages) do
  local like = likeness(stage)
  if last and last.like == like and not opt.all then
    last.count, last.last = last.count + 1, stage.name
    last.parameters, last.bytes = last.parameters + stage.parameters, last.bytes + stage.bytes
  else
    last = { like = like, name = stage.name, count = 1, kind = stage.kind, parameters = stage.parameters, bytes = stage.bytes,
      tensors = stage.tensors }
    rows[#rows + 1] = last
  end
end
for _, row in ipairs(rows) do
  if row.count > 1 then row.name = ("%s .. %s"):format(row.name, row.last:match "[^.]+$") end
end
cli.print ""
cli.print(cli.table(rows, { { "name", title = "stage" }, "kind", { "count", format = "%d" },
  { "parameters", format = units.count, align = "right" }, { "bytes", format = units.bytes, align = "right" } }))
if opt.all then
  cli.print ""
  local list = {}
  for _, stage in ipairs(a.stages) do
    for _, t in ipairs(stage.tensors) do list[#list + 1] = { name = t.name, dtype = t.dtype, shape = shape_of(t), bytes = t.bytes } end
  end
  cli.print(cli.table(list, { { "name", title = "tensor" }, "dtype", "shape", { "bytes", format = units.bytes, align = "right" } }))
else
  local widest = rows[1]
  for _, row in ipairs(rows) do
    if row.count > widest.count or (widest.kind == "stem" and row.kind ~= "stem") then widest = row end
  end
  if widest then
    cli.print("\ntensors of " .. widest.name)
    local list = {}
    for i, t in ipairs(widest.tensors) do
      if i > 60 then list[i] = { tensor = ("  and %d more (--all lists them)"):format(#widest.tensors - 60), dtype = "", shape = "" } break end
      list[i] = { tensor = "  " .. t.name, dtype = t.dtype, shape = shape_of(t) }
    end
    cli.print((cli.table(list, { "tensor", "dtype", "shape" }):gsub("^[^\n]*\n", "")))
  end
end

cli.print ""
if a.assumed then
  local list = {}
  for i, one in ipairs(a.assumed) do list[i] = ("%s=%s (%s)"):format(one.key, tostring(one.value), one.from) end
  cli.print("config        " .. table.concat(list, ", "))
end
if a.runnable and model:unfit "tokens" then
  cli.print(("runnable      yes, in %s, on %s"):format(model.dtype, model.net.data))
elseif a.runnable then
  cli.print(("runnable      yes, in %s\nin memory     generate from %s, train from %s (LoRA, micro-batch 1, activations rebuilt)"):format(
    model.dtype, units.bytes(needs.generate), units.bytes(needs.train)))
  cli.print(("streamed      generate from %s, train from %s: weights pass through memory, read again for each token and update"):format(
    units.bytes(needs.generate_streamed), units.bytes(needs.train_streamed)))
else
  local told = {}
  for i, f in ipairs(a.findings) do
    told[i] = { what = "  " .. f.what, value = tostring(f.value), confidence = ("%d %%"):format(100 * f.confidence), why = f.why }
  end
  cli.print "found by names and shapes, with the confidence of each"
  cli.print((cli.table(told, { "what", "value", { "confidence", align = "right" }, "why" }):gsub("^[^\n]*\n", "")))
  cli.print "\nrunnable      no; it can be analysed. What is missing:"
  for i, line in ipairs(a.missing) do
    if i > 20 then cli.print(("  and %d more (--json lists all)"):format(#a.missing - 20)) break end
    cli.print("  " .. line)
  end
end
