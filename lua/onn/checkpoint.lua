-- Checkpoints: directories checkpoint-N with a manifest (size and hash of each file) written last; the newest complete one counts.
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

-- Writes checkpoint-`step` under `out`: write_model(directory) stores the adapter or the weights, `params` and `optimizer` become
-- optimizer.safetensors, `state` (a table of plain values) state.json. Appears whole or not at all. Returns its path, or nil, message, code.
function checkpoint.save(out, step, write_model, params, optimizer, state)
  local final, part = checkpoint.path(out, step), ("%s/.checkpoint-%d.part"):format(out, step)
  system.remove_tree(part)
  local ok, message, code = system.mkdir_p(part)
  if ok then ok, message, code = write_model(part) end
  if ok then
    local moments = {}
    for _, p in ipairs(params) do
      moments["value." .. p.name] = p.value
      if optimizer.m[p.name] then moments["m." .. p.name], moments["v." .. p.name] = optimizer.m[p.name], optimizer.v[p.name] end
    end
    ok, message, code = stores.write(part .. "/optimizer.safetensors", moments, { format = "pt" })
  end
  if ok then
    state.optimizer_step = optimizer.step
    ok, message, code = system.write_file(part .. "/state.json", json.encode(state, { pretty = true }) .. "\n")
  end
  local manifest = { files = {} }
  for _, name in ipairs(ok and system.list(part) or {}) do
    local hash
    hash, message, code = system.hash_file(part .. "/" .. name)
    if not hash then return nil, message, code end
    manifest.files[name] = { size = system.stat(part .. "/" .. name).size, hash = hash }
  end
  if ok then ok, message, code = system.write_file(part .. "/manifest.json", json.encode(manifest, { pretty = true }) .. "\n") end
  if ok then
    system.remove_tree(final)
    ok, message, code = system.rename(part, final)
  end
  if not ok then
    system.remove_tree(part)
    return nil, message, code
  end
  return final
end

-- Is the checkpoint at `path` whole? Returns true, or false and what is wrong.
function checkpoint.verify(path)
  local manifest, message = files.read_json(path .. "/manifest.json")
  if not manifest then return false, message end
  for name, want in pairs(manifest.files or {}) do
    local stat = system.stat(path .. "/" .. name)
    if not stat or stat.size ~= want.size or system.hash_file(path .. "/" .. name) ~= want.hash then
      return false, ("%s/%s is damaged"):format(path, name)
    end
  end
  return true
end

-- The newest complete checkpoint's path under `out`, or nil; notes(message) hears of damaged ones passed over.
function checkpoint.newest(out, notes)
  for _, step in ipairs(checkpoint.list(out)) do
    local path = checkpoint.path(out, step)
    local whole, message = checkpoint.verify(path)
    if whole then return path end
    if notes then notes(message .. "; trying an older one") end
  end
end

-- Puts a checkpoint's values and moments into params and optimizer; returns its state, or nil, message, code.
function checkpoint.restore(path, params, optimizer)
  local state, message, code = files.read_json(path .. "/state.json")
  if not state then return nil, message, code end
  local store
  store, message, code = stores.open(path .. "/optimizer.safetensors")
  if not store then return nil, message, code end
  for _, p in ipairs(params) do
    local value = store:read("value." .. p.name)
    if not value or value:numel() ~= p.value:numel() then
      store:close()
      return nil, ("%s does not fit this run: '%s' is missing or of another shape"):format(path, p.name), "format"
    end
    p.value:copy(value)
    value:free()
    if p.shadow then p.shadow:copy(p.value) end
    for _, moment in ipairs { "m", "v" } do
      if store:info(moment .. "." .. p.name) then optimizer[moment][p.name] = tensors.keep(store:read(moment .. "." .. p.name)) end
    end
  end
  store:close()
  optimizer.step = state.optimizer_step
  return state
end

-- Removes all but the newest `keep` checkpoints.
function checkpoint.prune(out, keep)
  for i, step in ipairs(checkpoint.list(out)) do
    if i > keep then system.remove_tree(checkpoint.path(out, step)) end
  end
end

-- What --out, --resume and --overwrite ask for: the checkpoint to go on from, or nil to start. Fails where results would be lost.
function checkpoint.choose(opt)
  local there = system.exists(opt.out) and #(system.list(opt.out) or {}) > 0
  if opt.resume then
    local path = type(opt.resume) == "string" and opt.resume or checkpoint.newest(opt.out, cli.note)
    if type(opt.resume) == "string" then
      local whole, message = checkpoint.verify(path)
      if not whole then cli.fail("--resume: " .. message) end
    end
    if not path then cli.note("--resume: no complete checkpoint in %s; starting anew", opt.out) end
    return path
  end
  if there and not opt.overwrite then
    cli.fail(("%s exists; --overwrite replaces it, --resume goes on from its newest checkpoint"):format(opt.out))
  end
  if there then for _, step in ipairs(checkpoint.list(opt.out)) do system.remove_tree(checkpoint.path(opt.out, step)) end end
end

return checkpoint
