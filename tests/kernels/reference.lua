-- What the kernels' specs share: tensors of known values, comparison with references in double, threads, instruction sets.
local core = require "onn.core.tensor"
local raw = require "onn.core.ops"
local support = require "tests.support"

local reference = {}

reference.floats = { "f32", "bf16" }

-- Uniform numbers in [low, high), rounded to dtype.
function reference.random(dtype, shape, seed, low, high)
  local t = raw.uniform(core.new("f32", shape), seed, "spec", 0, low or -1, high or 1)
  return dtype == "f32" and t or t:to(dtype)
end

-- The same (rows, width), as a view whose rows have a gap between them.
function reference.gapped(dtype, rows, width, seed, low, high)
  return reference.random(dtype, { rows, width + 5 }, seed, low, high):narrow(2, 3, width)
end

function reference.ints(values) return core.from_table(values, "i32") end

-- All elements in row-major order, from 1.
function reference.flat(t)
  t = t:contiguous()
  return t:view({ t:numel() }):totable()
end

-- Fails unless every element is within rel * |want| + abs of what is wanted (a table, or a number for all). By default one
-- rounding to the tensor's dtype, with a little of the arithmetic's own.
local rounding = { f32 = 2e-6, bf16 = 0.0040, f16 = 0.0006 }
function reference.near(got, want, rel, abs, what)
  rel, abs = rel or rounding[got:dtype()], abs or 1e-6
  local values = reference.flat(got)
  if type(want) == "table" and #want ~= #values then error(("%s: %d elements, %d wanted"):format(what or "?", #values, #want), 2) end
  for i = 1, #values do
    local g, w = values[i], type(want) == "table" and want[i] or want
    local equal = g == w or (g ~= g and w ~= w) or math.abs(g - w) <= rel * math.abs(w) + abs
    if not equal then error(("%s, element %d of %s: %.9g, %.9g wanted"):format(what or "?", i, got:describe(), g, w), 2) end
  end
end

-- The bits of tensors, to compare with ==.
function reference.bits(...)
  local all = {}
  for k = 1, select("#", ...) do
    local t = select(k, ...)
    all[k] = t and t:contiguous():data() or "none"
  end
  return table.concat(all, "|")
end

-- Runs f under 1, 2 and 3 threads; the bits of the tensors that it returns must agree. Returns those of the last run.
function reference.any_threads(f)
  local before, first, results = core.threads(), nil, nil
  for n = 1, 3 do
    core.set_threads(n)
    results = { f() }
    local bits = reference.bits(unpack(results))
    first = first or bits
    if bits ~= first then
      core.set_threads(before)
      error(("%d threads give other bits than 1"):format(n), 2)
    end
  end
  core.set_threads(before)
  return unpack(results)
end

-- d loss / d x by central differences; loss takes a table like x and gives a number, in double.
function reference.gradient(loss, x)
  local g = {}
  for i = 1, #x do
    local v, h = x[i], 1e-5 * math.max(1, math.abs(x[i]))
    x[i] = v + h
    local up = loss(x)
    x[i] = v - h
    g[i] = (up - loss(x)) / (2 * h)
    x[i] = v
  end
  return g
end

function reference.dot(a, b)
  local s = 0
  for i = 1, #a do s = s + a[i] * b[i] end
  return s
end

-- erf in double: a series below 3, a continued fraction above.
function reference.erf(x)
  local a = math.abs(x)
  local y
  if a < 3 then
    local term, sum = a, a
    for n = 1, 80 do
      term = -term * a * a / n
      sum = sum + term / (2 * n + 1)
    end
    y = 2 / math.sqrt(math.pi) * sum
  else
    local f = 0
    for n = 60, 1, -1 do f = n / 2 / (a + f) end
    y = 1 - math.exp(-a * a) / math.sqrt(math.pi) / (a + f)
  end
  return x < 0 and -y or y
end

-- Gives an operation ever more memory until it succeeds. As long as it fails, the tensors that it adds to must be as before, and
-- the success after those failures must have counted nothing twice. make() -> tensors added to; run(those). Returns the number
-- of failures.
function reference.nothing_half_done(make, run)
  local target = make()
  local before = reference.bits(unpack(target))
  run(unpack(target))
  local after = reference.bits(unpack(target))
  target = make()
  collectgarbage()
  collectgarbage()
  core.trim()
  local used, room, failures = core.memory().used, 64, 0
  while true do
    core.set_budget(used + room)
    local ok, message = pcall(run, unpack(target))
    core.set_budget(math.huge)
    core.trim()
    local bits = reference.bits(unpack(target))
    if ok then
      if bits ~= after then error("the operation that succeeded counted something twice", 2) end
      return failures
    end
    if not message:find "memory budget" then error(message, 2) end
    if bits ~= before then error(("something was changed by a failure, with %d bytes left"):format(room), 2) end
    failures, room = failures + 1, math.ceil(room * 1.02 / 64) * 64
  end
end

-- Runs the calling spec again under each instruction set below this machine's, in child processes.
function reference.every_instruction_set(it, pending)
  if os.getenv "ONN_SPEC_SET" then return end
  local file = debug.getinfo(2, "S").source:gsub("^@", "")
  for _, set in ipairs { "avx512_bf16", "avx512", "avx2", "sse4.1" } do
    it("holds under " .. set, function()
      local _, described = support.shell(("ONN_CPU=%s %s -e 'print((require \"onn.core.tensor\".backend()))'"):format(set,
        support.quote(support.onn)))
      if not described:find("cpu: " .. set .. ",", 1, true) then return pending("this processor has no " .. set) end
      local results = os.tmpname()
      local status, out, err = support.shell(("ONN_SPEC_SET=1 ONN_CPU=%s %s tests/run.lua --child %s %s"):format(set,
        support.quote(support.onn), file, results))
      local text = support.read(results)
      os.remove(results)
      local failed = {}
      for name, message in text:gmatch "fail\t(.-)\t([^\n]*)" do failed[#failed + 1] = name .. ": " .. message end
      if #failed > 0 then error(table.concat(failed, "\n"), 0) end
      if status ~= 0 or not text:find "\nend\t" then error(("ended with status %d\n%s%s"):format(status, out, err), 0) end
    end)
  end
end

return reference
