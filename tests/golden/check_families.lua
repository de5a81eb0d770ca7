-- Compares onn with what make_families.py wrote, a line for each family:
--   onn tests/golden/check_families.lua FOLDER [name ...]            logits, greedy ids, gradients of adapters, streamed bits
--   onn tests/golden/check_families.lua --table README.md FOLDER     the same, as the table between README's marks
-- Bars: 1e-4 of the largest logit, 1e-3 of the largest gradient of a tensor, equal ids, equal bits.
local batch = require "onn.batch"
local compare = require "tests.golden.compare"
local generator = require "onn.generator"
local lora = require "onn.nn.lora"
local Model = require "onn.model"
local store = require "onn.core.store"
local sweep = require "onn.sweep"
local system = require "onn.core.system"

local largest, distance = compare.largest, compare.distance

local function batch_of(model, golden)
  local given = { input_ids = golden:read "input_ids", labels = golden:info "labels" and golden:read "labels" or nil }
  if model.net.batch then return assert(model.net.batch(model.sizes, given)) end
  return batch.from_ids(given.input_ids)
end

local function greedy(model, golden)
  local want, prompt, got = golden:read("greedy"):totable()[1], {}, {}
  local first = golden:read("input_ids"):totable()[1]
  for t = 1, 5 do prompt[t] = first[t] end
  generator.run(model, { prompt }, {}, { max_tokens = #want, temperature = 0 }, function(_, id) got[#got + 1] = id end)
  for t, id in ipairs(want) do if got[t] ~= id then return false end end
  return true
end

-- The largest distance of a gradient, or nil where there are no adapters; or nil and what is wrong.
local function gradients(model, golden, b, folder)
  if not compare.adapter_directory(golden, folder) then return nil end
  local adapter, message = lora.load(model, folder)
  system.remove_tree(folder)
  if not adapter then return nil, message end
  local params = lora.parameters(adapter)
  sweep.gradient(model, { b }, { scale = 1 / b.supervised })
  local top, worst, read_as = compare.largest_gradient(golden), 0, {}
  for _, one in ipairs(adapter.modules) do read_as[one.name .. ".A"], read_as[one.name .. ".B"] = one.read_as .. ".A", one.read_as .. ".B" end
  for _, p in ipairs(params) do
    local off = compare.gradient(golden:read("grad." .. read_as[p.name]), p.gradients[1], top)
    if not (off <= worst) then worst = off end
  end
  lora.remove(model, adapter)
  return worst
end

-- What is known of one family: {verdict = ok | wrong | refused, logits, greedy, gradients, streamed, why}.
local function check(path, folder)
  local golden = store.open(path .. "/golden.safetensors")
  if not golden or not golden:info "input_ids" then return nil end
  local model, message = Model.open(path, { dtype = "f32" })
  if not model then return { verdict = "refused", why = message } end
  if #model.missing > 0 then return { verdict = "refused", why = model:why_not() } end
  assert(model:load())
  local b = batch_of(model, golden)
  local want = golden:read "logits"
  local logits = model:forward(model:carry(b), {}).logits
  local result = { type = model.config.model_type or model.family, logits = distance(want, logits) / largest(want) }
  if golden:info "greedy" then result.greedy = greedy(model, golden) end
  local wrong
  result.gradients, wrong = gradients(model, golden, b, folder)
  local streamed = assert(Model.open(path, { dtype = "f32" }))
  assert(streamed:load { ring = { slots = 1 } })
  result.streamed = distance(streamed:forward(streamed:carry(b), {}).logits, logits) == 0
  streamed:close()
  model:close()
  local good = result.logits <= 1e-4 and result.greedy ~= false and (result.gradients or 0) <= 1e-3 and result.streamed and not wrong
  result.verdict, result.why = good and "ok" or "wrong", wrong
  return result
end

local function shown(result)
  if result.verdict == "refused" then return "refused  " .. result.why:sub(1, 160) end
  local text = ("%-8s logits %.1e"):format(result.verdict, result.logits)
  if result.greedy ~= nil then text = text .. (result.greedy and ", greedy ids equal" or ", greedy ids DIFFER") end
  if result.gradients then text = text .. (", gradients %.1e"):format(result.gradients) end
  return text .. (result.streamed and ", streamed alike" or ", streamed DIFFERS") .. (result.why and ", " .. result.why or "")
end

-- A row for each model type, of all its checkpoints that were compared: the worst of each number.
local function table_of(results, names)
  local types, rows = {}, {}
  for _, name in ipairs(names) do
    local r = results[name]
    if r.verdict == "ok" then
      local row = rows[r.type]
      if not row then
        row = { count = 0, logits = 0 }
        rows[r.type], types[#types + 1] = row, r.type
      end
      row.count, row.logits = row.count + 1, math.max(row.logits, r.logits)
      row.gradients = r.gradients and math.max(row.gradients or 0, r.gradients) or row.gradients
      row.greedy = row.greedy or r.greedy
    end
  end
  table.sort(types)
  local lines = { "| model type | checkpoints | logits | generates | gradients of adapters | streamed |", "|---|---|---|---|---|---|" }
  for _, kind in ipairs(types) do
    local row = rows[kind]
    lines[#lines + 1] = ("| %s | %d | %.0e | %s | %s | same bits |"):format(kind, row.count, row.logits, row.greedy and "same ids" or "",
      row.gradients and ("%.0e"):format(row.gradients) or "")
  end
  return table.concat(lines, "\n")
end

local arguments = { ... }
local readme = arguments[1] == "--table" and arguments[2]
local folder = arguments[readme and 3 or 1]
local names = { unpack(arguments, readme and 4 or 2) }
if not folder then error("a folder is expected: see the head of this file", 0) end
if #names == 0 then names = system.list(folder) end
table.sort(names)
local results, known, counts = {}, {}, { ok = 0, wrong = 0, refused = 0, error = 0 }
for _, name in ipairs(names) do
  local ok, result = pcall(check, folder .. "/" .. name, os.tmpname() .. ".adapter")
  if not ok then result = { verdict = "error", why = tostring(result) } end
  if result then
    counts[result.verdict] = counts[result.verdict] + 1
    results[name], known[#known + 1] = result, name
    print(("%-24s %s"):format(name, result.verdict == "error" and "ERROR " .. result.why or shown(result)))
  end
  collectgarbage() collectgarbage()
end
print(("%d ok, %d wrong, %d refused, %d errors"):format(counts.ok, counts.wrong, counts.refused, counts.error))
if readme then
  local text = assert(system.read_file(readme))
  local head, tail = text:match "^(.-<!%-%- families %-%->\n).-(<!%-%- end of families %-%->.*)$"
  if not head then error(readme .. ": the marks of the table are missing", 0) end
  assert(system.write_file(readme, head .. table_of(results, known) .. "\n" .. tail))
end
