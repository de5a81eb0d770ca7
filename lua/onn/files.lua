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

-- org/name -> its snapshot's directory; nil where the name has another form; nil, message where the cache does not hold it.
local function hub_snapshot(name)
  local org, model = name:match "^([%w_][%w%-_.]*)/([%w_][%w%-_.]*)$"
  if not org then return nil end
  local root = ("%s/models--%s--%s"):format(files.hub(), org, model)
  local revision = system.read_file(root .. "/refs/main", 4096)
  if not revision then return nil, "it is neither here nor in the hub cache " .. files.hub() end
  revision = revision:gsub("%s+$", "")
  if not revision:find "^%w+$" then return nil, root .. "/refs/main names no revision" end
  local path = ("%s/snapshots/%s"):format(root, revision)
  if not system.isdir(path) then return nil, path .. ", which its refs/main names, is not there" end
  return path
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
  local snapshot, why = hub_snapshot(model)
  if snapshot then return snapshot end
  local near = hint(model)
  return nil, ("no such model: '%s'%s"):format(model, near ~= "" and near or why and "; " .. why or ""), "io"
end

-- A JSON file's value, or nil, message, code. Values take many times the text's bytes: a file beyond 64 MiB is none of a model's.
function files.read_json(path)
  local text, message, code = system.read_file(path, 2 ^ 26)
  if not text then return nil, message, code end
  local value, wrong, kind = json.decode(text, path)
  if value == nil and text:find "Infinity" then -- Python writes it into a config where there is no limit
    return json.decode((text:gsub("([%[:,]%s*)Infinity(%s*[%],}])", "%11e308%2")), path)
  end
  return value, wrong, kind
end

return files
