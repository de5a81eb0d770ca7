-- Where text ends: the ids that stop generation, and stop strings found in text as it comes.
local files = require "onn.files"

local stop = {}

-- Set of stopping ids, from generation_config.json, config.json and the tokenizer.
function stop.ids(model, tokenizer)
  local set = {}
  local function add(value)
    if type(value) == "number" then set[value] = true elseif type(value) == "table" then for _, id in ipairs(value) do add(id) end end
  end
  local generation = files.read_json(model.directory .. "/generation_config.json")
  add(generation and generation.eos_token_id)
  add(model.config.eos_token_id)
  add(tokenizer and tokenizer.eos_id)
  return set
end

-- A watcher for stop strings: push(text) returns what may be shown now, and true once a stop string was met. What could be
-- the beginning of one is held back; finish() gives it out.
function stop.watch(strings)
  local held, longest = "", 0
  for _, s in ipairs(strings) do longest = math.max(longest, #s) end
  return {
    push = function(text)
      held = held .. text
      local first
      for _, s in ipairs(strings) do
        local at = held:find(s, 1, true)
        if at and (not first or at < first) then first = at end
      end
      if first then
        local shown = held:sub(1, first - 1)
        held = ""
        return shown, true
      end
      local keep = 0
      for n = math.min(longest - 1, #held), 1, -1 do
        local tail = held:sub(-n)
        for _, s in ipairs(strings) do if s:sub(1, n) == tail then keep = math.max(keep, n) end end
      end
      local shown = held:sub(1, #held - keep)
      held = held:sub(#held - keep + 1)
      return shown, false
    end,
    finish = function() local rest = held; held = ""; return rest end,
  }
end

return stop
