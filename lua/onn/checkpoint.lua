-- Checkpoints: directories checkpoint-N with a manifest (size and hash of each file) written last; the newest complete one counts.
-- What is half written lies under a name that begins with a dot, and is removed by the next run.
local files = require "onn.files"
local cli = require "onn.cli"
local json = require "onn.core.json"
local stores = require "onn.core.store"
local system = require "onn.core.system"
local tensors = require "onn.core.tensor"

local checkpoint = {}

-- Steps of the checkpoints under `out`, newest first.
function checkpoint.list(out)
  local steps = {}
  for _, name in ipairs(system.list(out) or {}) do
    local step = name:match "^checkpoint%-(%d+)$"
    if step then steps[#steps + 1] = tonumber(step) end
  end
  table.sort(steps, function(a, b) return a > b end)
  return steps
end

function checkpoint.path(out, step) return ("%s/checkpoint-%d"):format(out, step) end

-- Does all that fill(directory) writes come to be, and is it complete? Removes what was begun if not.
local function whole(directory, fill)
  local ok, message, code = system.remove_tree(directory)
  if ok then ok, message, code = system.mkdir_p(directory) end
  if ok then ok, message, code = fill(directory) end
  if ok then return true end
  system.remove_tree(directory)
  return nil, message, code
end

local function write_manifest(directory)
  local manifest = { files = {} }
  for _, name in ipairs(system.list(directory) or {}) do
    local hash, message, code = system.hash_file(directory .. "/" .. name)
    if not hash then return nil, message, code end
    manifest.files[name] = { size = system.stat(directory .. "/" .. name).size, hash = hash }
  end
  return system.write_file(directory .. "/manifest.json", json.encode(manifest, { pretty = true }) .. "\n")
end

-- Writes checkpoint-`step` under `out`: write_model(directory) stores the adapter or the weights, `params` and `optimizer` become
-- optimizer.safetensors, `state` (a table of plain values) state.json. Appears whole or not at all. Returns its path, or nil, message,
-- code.
function checkpoint.save(out, step, write_model, params, optimizer, state)
  local final, part = checkpoint.path(out, step), ("%s/.checkpoint-%d.part"):format(out, step)
  local ok, message, code = whole(part, function()
    local good, wrong, kind = write_model(part)
    if not good then return nil, wrong, kind end
    local moments = {}
    for _, p in ipairs(params) do
      moments["value." .. p.name] = p.value
      for _, moment in ipairs { "m", "v" } do moments[moment .. "." .. p.name] = optimizer[moment][p.name] end
    end
    good, wrong, kind = stores.write(part .. "/optimizer.safetensors", moments, { format = "pt" })
    if not good then return nil, wrong, kind end
    state.optimizer_step = optimizer.step
    good, wrong, kind = system.write_file(part .. "/state.json", json.encode(state, { pretty = true }) .. "\n")
    if not good then return nil, wrong, kind end
    good, wrong, kind = write_manifest(part)
    if not good then return nil, wrong, kind end
    good, wrong, kind = system.remove_tree(final) -- one of the same step is damaged, or of the run that is replaced
    if not good then return nil, wrong, kind end
    return system.rename(part, final)
  end)
  if not ok then return nil, message, code end
  return final
end

-- Is the checkpoint at `path` whole? Returns true, or false and what is wrong.
function checkpoint.verify(path)
  local manifest, message = files.read_json(path .. "/manifest.json")
  if not manifest then return false, message end
  local list = type(manifest) == "table" and manifest.files
  if type(list) ~= "table" then return false, path .. "/manifest.json: it lists no files" end
  for _, name in ipairs { "state.json", "optimizer.safetensors" } do
    if list[name] == nil then return false, ("%s/manifest.json: it does not list %s"):format(path, name) end
  end
  for name, want in pairs(list) do
    local stat = system.stat(path .. "/" .. tostring(name))
    if not stat then return false, ("%s/%s is missing"):format(path, tostring(name)) end
    if type(want) ~= "table" or stat.size ~= want.size or system.hash_file(path .. "/" .. name) ~= want.hash then
      return false, ("%s/%s is damaged"):format(path, name)
    end
  end
  return true
end

-- The newest complete checkpoint's path under `out`, or nil; notes(message) hears of damaged ones passed over.
function checkpoint.newest(out, notes)
  for _, step in ipairs(checkpoint.list(out)) do
    local path = checkpoint.path(out, step)
    local complete, message = checkpoint.verify(path)
    if complete then return path end
    if notes then notes(message .. "; passed over") end
  end
end

local function same_shape(a, b) return table.concat(a:shape(), ",") == table.concat(b:shape(), ",") end

-- What a checkpoint says of its run; or nil, message, code.
function checkpoint.state(path)
  local state, message, code = files.read_json(path .. "/state.json")
  if not state then return nil, message, code end
  if type(state) ~= "table" or type(state.step) ~= "number" or type(state.optimizer_step) ~= "number" then
    return nil, path .. "/state.json: 'step' and 'optimizer_step' should be numbers", "format"
  end
  return state
end

-- Puts a checkpoint's values and moments into params and optimizer; returns its state, or nil, message, code. A checkpoint that does
-- not fit changes nothing.
function checkpoint.restore(path, params, optimizer)
  local state, message, code = checkpoint.state(path)
  if not state then return nil, message, code end
  local store
  store, message, code = stores.open(path .. "/optimizer.safetensors")
  if not store then return nil, message, code end
  local read, expected = {}, 0
  local function fetch(name, like, optional)
    local value
    if optional and not store:info(name) then return true end
    value, message, code = store:read(name)
    if not value then return nil end
    read[name], expected = value, expected + 1
    if value:dtype() == like:dtype() and same_shape(value, like) then return true end
    message, code = ("%s/optimizer.safetensors: tensor '%s' does not have this run's shape"):format(path, name), "format"
  end
  local ok = true
  for _, p in ipairs(params) do
    ok = ok and fetch("value." .. p.name, p.value) and fetch("m." .. p.name, p.value, true) and fetch("v." .. p.name, p.value, true)
  end
  if ok and expected ~= #store:names() then
    ok, message, code = nil, path .. "/optimizer.safetensors: it trains more tensors than this run does", "format"
  end
  store:close()
  for _, p in ipairs(ok and params or {}) do
    p.value:copy(read["value." .. p.name])
    if p.shadow then p.shadow:copy(p.value) end
    for _, moment in ipairs { "m", "v" } do
      local value = read[moment .. "." .. p.name]
      if value then optimizer[moment][p.name], read[moment .. "." .. p.name] = tensors.keep(value), nil end
    end
  end
  for _, value in pairs(read) do value:free() end
  if not ok then return nil, message, code end
  optimizer.step = state.optimizer_step
  return state
end

-- After a save of `step`: removes all but this run's newest `keep` checkpoints. Later steps, and those of `old` (a list of steps), are
-- of a run that this one replaces.
function checkpoint.prune(out, keep, step, old)
  local replaced, kept = {}, 0
  for _, n in ipairs(old or {}) do replaced[n] = n ~= step or nil end
  for _, n in ipairs(checkpoint.list(out)) do
    if n > step or replaced[n] or kept >= keep then system.remove_tree(checkpoint.path(out, n)) else kept = kept + 1 end
  end
end

-- What a run is, where a checkpoint's place in the data and its numbers depend on it: `exact` must be the same to go on, `free` may differ.
local exact = { "data", "batch", "seq_len", "pack", "shuffle", "seed" }
local free = { "total", "optimizer", "momentum", "lr", "schedule", "warmup", "clip", "weight_decay", "dropout", "alpha", "loss" }

local function text_of(value)
  if value == nil or value == json.null then return "none" end
  return type(value) == "number" and ("%.17g"):format(value) or tostring(value)
end

-- run(opt, facts) -> what checkpoints remember of a run's options; facts: {data = hash, total = updates}.
function checkpoint.run(opt, facts)
  local run = { data = facts.data, total = facts.total }
  for _, list in ipairs { exact, free } do
    for _, key in ipairs(list) do if run[key] == nil then run[key] = opt[key] end end
  end
  return run
end

-- compare(path, was, now) -> true and a list of differences that change the numbers from here on; or nil, message where the
-- checkpoint's place in the data would mean something else.
function checkpoint.compare(path, was, now)
  local notes = {}
  if type(was) ~= "table" then return true, notes end
  for _, key in ipairs(exact) do
    if text_of(was[key]) ~= text_of(now[key]) then
      if key == "data" then return nil, path .. " was made with other data; --overwrite starts anew" end
      return nil, ("%s was made with --%s %s, this run has %s; --overwrite starts anew"):format(path, key:gsub("_", "-"), text_of(was[key]),
        text_of(now[key]))
    end
  end
  for _, key in ipairs(free) do
    if text_of(was[key]) ~= text_of(now[key]) then
      notes[#notes + 1] = ("%s was %s, is now %s"):format(key:gsub("_", "-"), text_of(was[key]), text_of(now[key]))
    end
  end
  return true, notes
end

local function resume_from(opt)
  if type(opt.resume) ~= "string" then
    local path = checkpoint.newest(opt.out, cli.note)
    if not path then cli.note("--resume: no complete checkpoint in %s; starting anew", opt.out) end
    return path
  end
  if not system.exists(opt.resume .. "/manifest.json") then
    local path = checkpoint.newest(opt.resume, cli.note)
    if path then return path end
  end
  local complete, message = checkpoint.verify(opt.resume)
  if not complete then cli.fail("--resume: " .. message) end
  return opt.resume
end

-- What --out, --resume and --overwrite ask for: the checkpoint to go on from or nil, and the steps of those that the run replaces.
-- Fails where results would be lost; removes nothing.
function checkpoint.choose(opt)
  if system.exists(opt.out) and not system.isdir(opt.out) then
    cli.fail(("--out %s: this is a file; a directory is expected"):format(opt.out))
  end
  if opt.resume then return resume_from(opt), {} end
  if #(system.list(opt.out) or {}) > 0 and not opt.overwrite then
    cli.fail(("%s exists; --overwrite replaces it, --resume goes on from its newest checkpoint"):format(opt.out))
  end
  return nil, checkpoint.list(opt.out)
end

-- Makes `out`, tries whether it can be written to, and removes what an earlier run left half written. Returns true, or nil, message, code.
function checkpoint.prepare(out)
  local ok, message, code = system.mkdir_p(out)
  if ok then ok, message, code = system.write_file(out .. "/.writable", "") end
  if not ok then return nil, message, code end
  for _, name in ipairs(system.list(out) or {}) do
    if name == ".writable" or name:find "^%..*%.part$" or name:find "%.part%-%w%w%w%w%w%w$" then system.remove_tree(out .. "/" .. name) end
  end
  return true
end

-- The end of a run: what write_model(directory) writes takes its place in `out`, once all of it is there.
function checkpoint.result(out, write_model)
  local part = out .. "/.result.part"
  local ok, message, code = whole(part, write_model)
  if not ok then return nil, message, code end
  for _, name in ipairs(system.list(part)) do
    ok, message, code = system.rename(part .. "/" .. name, out .. "/" .. name)
    if not ok then return nil, message, code end
  end
  return system.remove_tree(part)
end

return checkpoint
