-- Files that people name: models by path or by org/name in the local hub cache, and JSON.
local json = require "onn.core.json"
local nearest = require "onn.nearest"
local system = require "onn.core.system"

local files = {}

-- The standard hub cache on this machine.
function files.hub()
  local cache = os.getenv "HF_HUB_CACHE"
  if cache and cache ~= "" then return cache end
  local home = os.getenv "HF_HOME"
  if home and home ~= "" then return home .. "/hub" end
  return (os.getenv "HOME" or "") .. "/.cache/huggingface/hub"
end

local function hub_snapshot(name)
  local org, model = name:match "^([%w%-_.]+)/([%w%-_.]+)$"
  if not org then return nil end
  local root = ("%s/models--%s--%s"):format(files.hub(), org, model)
  local revision = system.read_file(root .. "/refs/main")
  local path = revision and ("%s/snapshots/%s"):format(root, (revision:gsub("%s+$", "")))
  return path and system.isdir(path) and path or nil
end

local function hint(path)
  local directory, base = path:match "^(.*)/([^/]+)/*$"
  local names = system.list(directory or ".") or {}
  local near = nearest.find(base or path, names)
  return near and ("; did you mean '%s'?"):format(directory and directory .. "/" .. near or near) or ""
end

-- MODEL as people give it -> a directory or a file, or nil, message, code.
function files.resolve(model)
  if system.exists(model) then return (model:gsub("(.)/+$", "%1")) end
  local snapshot = hub_snapshot(model)
  if snapshot then return snapshot end
  return nil, ("no such model: '%s'%s"):format(model, hint(model)), "io"
end

-- A JSON file's value, or nil, message, code.
function files.read_json(path)
  local text, message, code = system.read_file(path)
  if not text then return nil, message, code end
  return json.decode(text, path)
end

return files
