-- How golden specs measure: distances relative to the largest reference value, and golden adapters as PEFT's files.
local core = require "onn.core.ops"
local json = require "onn.core.json"
local store = require "onn.core.store"
local system = require "onn.core.system"

local compare = {}

function compare.largest(t) return core.reduce(core.unary(t:to("f32"):contiguous():view { t:numel() }, "abs"), "max"):item() end

function compare.distance(a, b) return compare.largest(core.binary(a:to "f32", b:to("f32"):view(a:shape()), "sub")) end

-- The largest value of any reference gradient; 1/1000 of it is the least that a gradient's distance is measured by.
function compare.largest_gradient(golden)
  local top, count = 0, 0
  for _, name in ipairs(golden:names()) do
    if name:find "^grad%." then top, count = math.max(top, compare.largest(golden:read(name))), count + 1 end
  end
  return top, count
end

-- How far a gradient is from its reference, the file's largest gradient being `top`.
function compare.gradient(want, got, top) return compare.distance(want, got) / math.max(compare.largest(want), top / 1000) end

-- Writes the golden adapters into `folder` as a PEFT directory. Returns it, or nil where there are none.
function compare.adapter_directory(golden, folder)
  local values = {}
  for _, name in ipairs(golden:names()) do
    local module, part = name:match "^lora%.(.*)%.([AB])$"
    if module then values[("base_model.model.%s.lora_%s.weight"):format(module, part)] = golden:read(name) end
  end
  if not next(values) then return nil end
  assert(system.mkdir_p(folder))
  assert(store.write(folder .. "/adapter_model.safetensors", values, { format = "pt" }))
  assert(system.write_file(folder .. "/adapter_config.json",
    json.encode { peft_type = "LORA", r = 4, lora_alpha = 8, lora_dropout = 0, target_modules = "all-linear", bias = "none" }))
  return folder
end

return compare
