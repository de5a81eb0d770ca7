-- Short measurements of this machine, through the kernels and files that models use. Each gives the best of several calls: a limit
-- is what is reached when nothing disturbs. Rates are per second, sizes in bytes.
local core = require "onn.core.ops"
local scope = require "onn.scope"
local stores = require "onn.core.store"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local probes = {}

-- Seconds of the fastest call: at least 2 calls and about `least` seconds of them, after one that is not counted.
local function fastest(f, least)
  f()
  local best, spent, calls = math.huge, 0, 0
  while calls < 2 or (spent < least and calls < 200) do
    local began = system.now()
    f()
    local took = system.now() - began
    best, spent, calls = math.min(best, took), spent + took, calls + 1
  end
  return best
end

-- FLOP/s of x (rows, into) by a weight (out, into), through the kernel that training uses.
function probes.product(dtype, rows, out, into)
  return scope(function()
    local x, w = tensors.new(dtype, { rows, into }):fill(0.5), tensors.new(dtype, { out, into }):fill(0.25)
    return 2 * rows * out * into / fastest(function() core.linear(x, w):free() end, 0.02)
  end)
end

-- A small model's feed-forward weight (576 x 1536) and a large one; rows in powers of two, or of four.
local shapes = { { 1536, 576, step = 2 }, { 2048, 2048, step = 1 } }

-- {dtype, rows, out, into, flops} for every dtype with fast arithmetic here.
function probes.products()
  local list, _, native = {}, tensors.backend()
  for _, dtype in ipairs(native and { "f32", "bf16" } or { "f32" }) do
    for _, shape in ipairs(shapes) do
      for power = 0, 10, shape.step do
        local rows, out, into = 2 ^ power, shape[1], shape[2]
        list[#list + 1] = { dtype = dtype, rows = rows, out = out, into = into, flops = probes.product(dtype, rows, out, into) }
      end
    end
  end
  return list
end

-- What weights that come from memory cost: {dtype, flops, bytes} for every dtype with fast arithmetic. A product of T rows with such a
-- weight and an adapter, forward or backward, takes about (its operations) / flops + (the weight's bytes) / bytes seconds; fitted to two
-- sizes of T. As in training, activations come from memory and go there. most: bytes of memory that this may take.
function probes.passes(most)
  local list, _, native = {}, tensors.backend()
  for _, dtype in ipairs(native and { "f32", "bf16" } or { "f32" }) do
    local out, into, few, many = 4096, 2048, 128, 512
    local each = dtype == "bf16" and 2 or 4
    local count = math.max(1, math.min(16, math.floor(most / ((out * into + 2 * many * (out + into)) * each)))) -- more than caches hold
    list[#list + 1] = scope(function()
      local weights, time = {}, {}
      for i = 1, count do weights[i] = tensors.new(dtype, { out, into }):fill(0.25) end
      local a, b = tensors.new(dtype, { 8, into }):fill(0.5), tensors.new(dtype, { out, 8 }):fill(0.5)
      for _, rows in ipairs { few, many } do
        local x, dy = {}, {}
        for i = 1, count do x[i], dy[i] = tensors.new(dtype, { rows, into }):fill(0.5), tensors.new(dtype, { rows, out }):fill(0.5) end
        time[rows] = fastest(function()
          local made = {}
          for i, w in ipairs(weights) do
            for _, t in ipairs { core.linear(x[i], w, nil, a, b, 1) } do made[#made + 1] = t end
            for _, t in ipairs { core.linear_backward(dy[i], w, a, b, 1) } do made[#made + 1] = t end
          end
          for _, t in ipairs(made) do t:free() end
        end, 0.1)
      end
      local passes, operations = 2 * count, 2 * (out * into + 8 * (out + into))
      local per_row = (time[many] - time[few]) / (many - few) / passes
      local pass = math.max(time[few] / passes - per_row * few, 1e-9)
      return { dtype = dtype, flops = operations / per_row, bytes = weights[1]:bytes() / pass }
    end)
  end
  return list
end

-- Products with fewer threads: {dtype, threads, flops} at 256 rows.
function probes.threads()
  local list, all, _, native = {}, tensors.threads(), tensors.backend()
  for _, dtype in ipairs(native and { "f32", "bf16" } or { "f32" }) do
    local threads = 1
    while threads <= all do
      tensors.set_threads(threads)
      list[#list + 1] = { dtype = dtype, threads = threads, flops = probes.product(dtype, 256, 2048, 2048) }
      threads = threads < all and math.min(threads * 2, all) or all + 1
    end
  end
  tensors.set_threads(all)
  return list
end

-- Bytes/s by size: `read` looks at every element once, `decode` is one token's product with a weight of that size in bf16 (f32
-- where the processor has no bf16), `copy` counts bytes read and written.
function probes.memory(most)
  local list, _, native = {}, tensors.backend()
  local dtype, width = native and "bf16" or "f32", 1024
  for _, mib in ipairs { 0.25, 1, 4, 16, 64, 256 } do
    local bytes = mib * 2 ^ 20
    if 2 * bytes > most then break end
    list[#list + 1] = scope(function()
      local w, x = tensors.new(dtype, { bytes / (native and 2 or 4) / width, width }):fill(0.25), tensors.new(dtype, { 1, width }):fill(1)
      local decode = fastest(function() core.linear_decode(x, w):free() end, 0.02)
      w:free()
      local from, to = tensors.new("f32", { bytes / 4 / width, width }):fill(1), tensors.new("f32", { bytes / 4 / width, width })
      local read = fastest(function() core.reduce(from, "max"):free() end, 0.02)
      local copy = fastest(function() to:copy(from) end, 0.02)
      return { bytes = bytes, read = bytes / read, decode = bytes / decode, copy = 2 * bytes / copy }
    end)
  end
  return list
end

-- Tells the system to forget a file's pages, so that the next read comes from the disk. Returns whether it could.
local function forget(path)
  local ok, fcntl = pcall(require, "posix.fcntl")
  if not ok or not fcntl.posix_fadvise then return false end
  local fd = fcntl.open(path, fcntl.O_RDONLY)
  if not fd then return false end
  local result = fcntl.posix_fadvise(fd, 0, 0, fcntl.POSIX_FADV_DONTNEED)
  require("posix.unistd").close(fd)
  return result == 0
end

-- Bytes/s at which the store brings tensors from a file under `directory` into memory: {bytes, cold, warm, write}; cold is absent
-- where the system cannot be told to forget. nil when the disk has no room.
function probes.disk(directory)
  local bytes, path = 64 * 2 ^ 20, ("%s/probe-%d.safetensors"):format(directory, system.pid())
  if (system.free_disk(directory) or 0) < 8 * bytes then return nil end
  local result = scope(function()
    local values = {}
    for i = 1, 4 do values["part" .. i] = core.uniform(tensors.new("f32", { bytes / 16 }), 1, "probes", i, 0, 1) end
    local began = system.now()
    if not stores.write(path, values, {}) then return nil end
    local facts = { bytes = bytes, write = bytes / (system.now() - began) }
    for _, t in pairs(values) do t:free() end
    local function read()
      local store = assert(stores.open(path))
      local start = system.now()
      for i = 1, 4 do store:read("part" .. i):free() end
      local took = system.now() - start
      store:close()
      return bytes / took
    end
    if forget(path) then facts.cold = read() end
    facts.warm = math.max(read(), read(), read())
    return facts
  end)
  os.remove(path)
  return result
end

-- Bytes/s at which a model's own tensors come through onn.core.stream, in the order of the stages: up to 2 GB of them, or 2 seconds.
function probes.streaming(model)
  local streams, units, bytes = require "onn.core.stream", {}, 0
  local piece = math.max(2 ^ 20, math.min(2 ^ 26, system.available_ram() / 16)) -- three of them are held
  for _, stage in ipairs(model.stages) do
    for _, t in ipairs(stage.tensors) do
      if not t.vector and bytes < 2e9 then
        local stored = model.store:info(t.name).bytes
        local rows = math.max(1, math.floor(t.shape[1] / math.ceil(stored / piece)))
        for first = 0, t.shape[1] - 1, rows do
          units[#units + 1] = { { name = t.name, first = first, rows = math.min(rows, t.shape[1] - first) } }
        end
        bytes = bytes + stored
      end
    end
  end
  local function checked(value, message)
    if not value then error(message, 0) end -- the disk's failure, not this program's
    return value
  end
  local stream, order = checked(streams.open(model.store, { units = units, slots = 3, prefetch = true, direct = true })), {}
  for u = 1, #units do order[u] = u end
  stream:schedule(order)
  local began = system.now()
  for u = 1, #units do
    checked(stream:acquire(u))
    stream:release(u)
    if system.now() - began > 2 then break end
  end
  local read = stream:stats().bytes / (system.now() - began)
  stream:close()
  return read
end

-- Bytes/s of writing 256 MB in the background, or nil where nothing can be written.
function probes.spilling(directory)
  if (system.free_disk(directory) or 0) < 2e9 then return nil end
  local spill = require("onn.core.spill").open(directory)
  if not spill then return nil end
  local block, began = tensors.new("f32", { 2 ^ 20 }):fill(1), system.now()
  for _ = 1, 64 do spill:write(block) end
  spill:wait()
  local rate = 64 * 2 ^ 22 / (system.now() - began)
  block:free()
  spill:close()
  return rate
end

return probes
