-- The functions every template may call, and the `loop` of a for block.
local arguments = require "onn.jinja.arguments"
local fault = require "onn.jinja.fault"
local values = require "onn.jinja.values"

local MAX_RANGE = 100000

local functions = {}
local define = {}

function define.range(machine, args)
  if #args < 1 or #args > 3 then fault.raise "range takes 1 to 3 arguments" end
  local first, last, step = 0, args[1], 1
  if #args > 1 then first, last = args[1], args[2] end
  first, last = arguments.whole_of("range", first), arguments.whole_of("range", last)
  if args[3] ~= nil then step = arguments.whole_of("range", args[3]) end
  if step == 0 then fault.raise "range's step is 0" end
  local count = math.max(0, math.ceil((last - first) / step))
  if count > MAX_RANGE then fault.raise(("range of %d items; at most %d"):format(count, MAX_RANGE), "memory") end
  machine:spend(count)
  local items = {}
  for i = 1, count do items[i] = first + (i - 1) * step end
  return values.list(items)
end

-- Copies a mapping or pairs given by position, then the named arguments, into `dict`.
local function fill(dict, args, kwargs)
  local source = args[1]
  if values.is_dict(source) then
    for _, key in ipairs(source.keys) do values.put(dict, key, values.get(source, key)) end
  elseif source ~= nil then
    for _, entry in ipairs(values.items(source)) do
      local couple = values.items(entry)
      if #couple ~= 2 then fault.raise "a mapping is made of pairs" end
      values.put(dict, couple[1], couple[2])
    end
  end
  local names = {}
  for name in pairs(kwargs) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do values.put(dict, name, kwargs[name]) end
  return dict
end

function define.dict(_, args, kwargs) return fill(values.dict(), args, kwargs) end
function define.namespace(_, args, kwargs) return fill(values.namespace(), args, kwargs) end

function define.raise_exception(_, args) fault.raise(values.string(args[1] or "the template refuses these messages"), "argument") end

-- strftime formats only; os.date's own leading '!' and '*t' would give a table or another zone.
function define.strftime_now(machine, args)
  local format = arguments.text_of("strftime_now", args[1])
  if #format > 200 then fault.raise "strftime_now's format is longer than 200 bytes" end
  return machine:made(os.date(" " .. format):sub(2))
end

function define.joiner(_, args, kwargs)
  local separator = arguments.bind("joiner", { "sep" }, args, kwargs) or ", "
  local used = false
  return values.callable("joiner", function()
    if used then return separator end
    used = true
    return ""
  end)
end

function define.cycler(_, args)
  if #args == 0 then fault.raise "cycler needs at least one value" end
  local at = 1
  local members = {
    current = function() return args[at] end,
    next = function()
      return values.callable("next", function()
        local value = args[at]
        at = at % #args + 1
        return value
      end)
    end,
    reset = function() return values.callable("reset", function() at = 1 return values.none end) end,
  }
  local cycler = values.callable("cycler", function() fault.raise "a cycler is not a function; use .next()" end)
  cycler.members = function(name) return members[name] and members[name]() end
  return cycler
end

-- globals(): fresh for each rendering.
function functions.globals()
  local names = {}
  for name, call in pairs(define) do names[name] = values.callable(name, call) end
  return names
end

-- loop(items, depth, recurse): the `loop` object over `items`; loop.at(i) moves it to turn i (1-based). recurse(items) renders
-- a recursive loop one level down, or is nil.
function functions.loop(items, depth, recurse)
  local turn, n = 1, #items
  local last_seen
  local members = {
    index = function() return turn end,
    index0 = function() return turn - 1 end,
    revindex = function() return n - turn + 1 end,
    revindex0 = function() return n - turn end,
    first = function() return turn == 1 end,
    last = function() return turn == n end,
    length = function() return n end,
    depth = function() return depth end,
    depth0 = function() return depth - 1 end,
    previtem = function()
      if turn == 1 then return values.undefined "loop.previtem of the first turn" end
      return items[turn - 1]
    end,
    nextitem = function()
      if turn == n then return values.undefined "loop.nextitem of the last turn" end
      return items[turn + 1]
    end,
    cycle = function()
      return values.callable("cycle", function(_, args)
        if #args == 0 then fault.raise "loop.cycle needs at least one value" end
        return args[(turn - 1) % #args + 1]
      end)
    end,
    changed = function()
      return values.callable("changed", function(_, args)
        local seen = values.tuple(args)
        if last_seen and values.equal(last_seen, seen) then return false end
        last_seen = seen
        return true
      end)
    end,
  }
  local loop = values.callable("loop", function(machine, args)
    if not recurse then fault.raise "'loop' is called, but the loop is not recursive" end
    local out = machine.out
    machine.out = {}
    recurse(args[1])
    local result = table.concat(machine.out)
    machine.out = out
    return result
  end)
  loop.members = function(name) return members[name] and members[name]() end
  loop.at = function(i) turn = i end
  return loop
end

return functions
