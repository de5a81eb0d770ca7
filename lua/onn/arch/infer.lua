-- A config for a store that has none, or lacks keys: --family names the architecture, sizes come from the tensors' shapes (onn.discover),
-- --set gives what shapes do not tell; the rest are the family's defaults.
local arch = require "onn.arch"
local discover = require "onn.discover"
local findings = require "onn.discover.findings"
local json = require "onn.core.json"
local nearest = require "onn.nearest"

local infer = {}

-- Values of --set as a config holds them: numbers, true, false, null, JSON, else text.
local function value_of(text)
  local value = json.decode(text)
  if value == nil then return text end
  return value
end

-- Puts the pairs of --set into the config, and into the nested one that would be read before it.
local function put_set(config, pairs_given)
  for key, text in pairs(pairs_given or {}) do
    local value = value_of(text)
    config[key] = value
    if type(config.text_config) == "table" and config.text_config[key] ~= nil then config.text_config[key] = value end
  end
end

-- The key of a config for a size or switch of the family.
local function key_of(family, role)
  local name = family.config and family.config[role]
  if type(name) == "table" then return name[1], name end
  return name, { name }
end

local MOST_FLAGS = 4 -- that are tried against each other

-- Switches that only tensors tell: biases and tying. Those that are not given are tried; what fits the store best stays.
local function put_flags(config, family, store)
  local open = {}
  for role in pairs(family.config or {}) do
    local key = key_of(family, role)
    if (role:find "bias$" or role == "tied") and config[key] == nil and #open < MOST_FLAGS then open[#open + 1] = key end
  end
  table.sort(open)
  local best, fewest
  for bits = 0, 2 ^ #open - 1 do
    local try = {}
    for k, v in pairs(config) do try[k] = v end
    for i, key in ipairs(open) do try[key] = math.floor(bits / 2 ^ (i - 1)) % 2 == 1 end
    local described = arch.describe(try, store)
    if described then
      local off = #arch.check(described, store)
      if not fewest or off < fewest then best, fewest = try, off end
      if off == 0 then break end
    end
  end
  return best or config
end

-- Sizes that shapes tell, for the keys that are not there.
local function put_sizes(config, family, store)
  local stages, stacks = discover.stages(store:names(), function(name) return store:info(name) end)
  local _, facts = findings.of(stages, stacks)
  local function get(role)
    local _, names = key_of(family, role)
    for _, name in ipairs(names) do if config[name] ~= nil then return config[name] end end
  end
  local function put(role, value)
    local key = key_of(family, role)
    if key and value and get(role) == nil then config[key] = value end
  end
  put("width", facts.width)
  put("layers", facts.layers > 0 and facts.layers or nil)
  put("vocabulary", facts.vocabulary)
  put("inner", facts.inner or facts.expert_inner)
  put("experts", facts.experts)
  put("expert_inner", facts.expert_inner)
  if facts.vocabulary then put("embed_width", facts.embedding_width) end
  if family.names and family.names.position then put("positions", facts.positions) end
  if facts.query and facts.head_size then put("heads", facts.query / facts.head_size) end
  local heads = get "heads"
  if type(heads) == "number" and heads >= 1 and facts.query and facts.query % heads == 0 then
    local size = facts.query / heads
    if size * heads ~= facts.width or facts.head_size or family.defaults and family.defaults.head_size then put("head_size", size) end
    if facts.kv % size == 0 then put("kv_heads", facts.kv / size) end
  end
end

-- config: config.json's value, or nil; opt: family, set ({key = text}). Returns the config with what was asked, or nil, message, code.
function infer.config(config, opt, store)
  local made = {}
  for k, v in pairs(type(config) == "table" and config or {}) do made[k] = v end
  if type(made.text_config) == "table" then
    local nested = {}
    for k, v in pairs(made.text_config) do nested[k] = v end
    made.text_config = nested
  end
  put_set(made, opt.set)
  if not opt.family then return made end
  local families = arch.families()
  local family = families[opt.family]
  if not family then
    local known = {}
    for name in pairs(families) do known[#known + 1] = name end
    table.sort(known)
    return nil, ("--family: no family is called '%s'%s"):format(opt.family, nearest.hint(opt.family, known)), "argument"
  end
  made.model_type = opt.family
  put_sizes(made, family, store)
  return put_flags(made, family, store)
end

-- What a config that was put together still lacks, as options: lines of arch.describe's list.
function infer.asked_for(wrong)
  local list = {}
  for i, line in ipairs(wrong) do
    local key, kind = line:match "^config.json: '([^']+)' should be (.-), found nothing$"
    list[i] = key and ("shapes do not tell '%s': give --set %s=... (%s)"):format(key, key, kind) or line:gsub("^config.json: ", "")
  end
  return list
end

return infer
