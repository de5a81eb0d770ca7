-- Walks the tree of a template. It reaches nothing but the values it was given; steps, text made, depth and output are
-- bounded, so that a hostile template ends in an error and not in a hang.
local fault = require "onn.jinja.fault"
local filters = require "onn.jinja.filters"
local functions = require "onn.jinja.functions"
local methods = require "onn.jinja.methods"
local operators = require "onn.jinja.operators"
local tests = require "onn.jinja.tests"
local values = require "onn.jinja.values"

local MAX_STEPS = 10e6       -- nodes visited, plus one for each 16 bytes of text or list item made
local MAX_OUTPUT = 32 * 2 ^ 20 -- bytes
local MAX_DEPTH = 400        -- nodes inside nodes, through macro calls too
local MAX_CALLS = 60         -- macros inside macros

local Machine = {}
Machine.__index = Machine

-- Scopes: a loop's turn, a macro's call, a block; names assigned inside one are gone after it.
local function inner(scope) return { names = {}, parent = scope } end

local function find(scope, name)
  while scope do
    local value = scope.names[name]
    if value ~= nil then return value end
    scope = scope.parent
  end
end

-- spend(n): counts n steps.
function Machine:spend(n)
  self.steps = self.steps + n
  if self.steps > MAX_STEPS then fault.raise("the template does too much work (a loop or a text without bound)", "memory") end
end

-- made(s): counts a text that was made; returns it.
function Machine:made(s)
  self:spend(#s / 16)
  return s
end

-- room(bytes): refuses beforehand what would be too long.
function Machine:room(bytes)
  if bytes > MAX_OUTPUT then fault.raise("a text grows beyond " .. MAX_OUTPUT / 2 ^ 20 .. " MiB", "memory") end
  self:spend(bytes / 16)
end

-- search(s, part): counts looking for a text in another; the worst case compares their lengths' product.
function Machine:search(s, part) self:spend(#s / 16 + (type(part) == "string" and #s * #part / 4096 or 0)) end

function Machine:write(s)
  self.written = self.written + #s
  if self.written > MAX_OUTPUT then fault.raise("the output grows beyond " .. MAX_OUTPUT / 2 ^ 20 .. " MiB", "memory") end
  self.out[#self.out + 1] = s
end

-- capture(body, scope): what the nodes write, as a text.
function Machine:capture(body, scope)
  local out = self.out
  self.out = {}
  local signal = self:run(body, scope)
  local result = table.concat(self.out)
  self.out = out
  return self:made(result), signal
end

-- Expressions -----------------------------------------------------------------------------------------------------------

local expressions = {}

function Machine:eval(node, scope)
  self.line = node.line
  self.depth = self.depth + 1
  self:spend(1)
  if self.depth > MAX_DEPTH then fault.raise("nested more than " .. MAX_DEPTH .. " deep", "memory") end
  local value = expressions[node.kind](self, node, scope)
  self.depth = self.depth - 1
  return value
end

function expressions.constant(_, node) return node.value end
function expressions.float(_, node) return values.float(node.value) end
function expressions.none() return values.none end

function expressions.name(_, node, scope)
  local value = find(scope, node.name)
  if value == nil then return values.undefined("'" .. node.name .. "'") end
  return value
end

local function eval_all(self, nodes, scope)
  local items = {}
  for i, node in ipairs(nodes) do items[i] = self:eval(node, scope) end
  return items
end

function expressions.list(self, node, scope) return values.list(eval_all(self, node.items, scope)) end
function expressions.tuple(self, node, scope) return values.tuple(eval_all(self, node.items, scope)) end

function expressions.dict(self, node, scope)
  local dict = values.dict()
  for _, entry in ipairs(node.entries) do
    values.put(dict, self:eval(entry.key, scope), self:eval(entry.value, scope))
  end
  return dict
end

function expressions.concat(self, node, scope)
  local parts, bytes = {}, 0
  for i, part in ipairs(node.parts) do
    parts[i] = values.string(self:eval(part, scope))
    bytes = bytes + #parts[i]
  end
  self:room(bytes)
  return table.concat(parts)
end

function expressions.binary(self, node, scope)
  local left = self:eval(node.left, scope)
  local right = self:eval(node.right, scope)
  self.line = node.line
  return operators.arithmetic[node.op](self, left, right)
end

function expressions.sign(self, node, scope) return operators.sign(node.op, self:eval(node.operand, scope)) end

expressions["not"] = function(self, node, scope) return not values.truth(self:eval(node.operand, scope)) end

expressions["and"] = function(self, node, scope)
  local left = self:eval(node.left, scope)
  if not values.truth(left) then return left end
  return self:eval(node.right, scope)
end

expressions["or"] = function(self, node, scope)
  local left = self:eval(node.left, scope)
  if values.truth(left) then return left end
  return self:eval(node.right, scope)
end

function expressions.compare(self, node, scope)
  local left = self:eval(node.left, scope)
  for _, step in ipairs(node.steps) do
    local right = self:eval(step.right, scope)
    self.line = node.line
    if not operators.comparison[step.op](self, left, right) then return false end
    left = right
  end
  return true
end

function expressions.condition(self, node, scope)
  if values.truth(self:eval(node.test, scope)) then return self:eval(node.yes, scope) end
  if node.no then return self:eval(node.no, scope) end
  return values.undefined "the missing 'else' of an inline if"
end

function expressions.slice(self, node, scope)
  local function bound(part) return part and self:eval(part, scope) or nil end
  return { start = bound(node.start), stop = bound(node.stop), step = bound(node.step) }
end

function expressions.attribute(self, node, scope)
  return methods.attribute(self:eval(node.object, scope), node.name)
end

function expressions.item(self, node, scope)
  local object = self:eval(node.object, scope)
  local key = self:eval(node.key, scope)
  self.line = node.line
  if node.key.kind == "slice" then return operators.slice(self, object, key) end
  return methods.item(self, object, key)
end

-- arguments(call, scope): positional values as an array, named ones as a table.
function Machine:arguments(call, scope)
  local args, kwargs = eval_all(self, call.args, scope), {}
  for _, named in ipairs(call.kwargs) do kwargs[named.name] = self:eval(named.value, scope) end
  if call.spread then
    for _, value in ipairs(values.items(self:eval(call.spread, scope))) do args[#args + 1] = value end
  end
  if call.spread_named then
    local dict = self:eval(call.spread_named, scope)
    if not values.is_dict(dict) then fault.raise "'**' needs a mapping" end
    for _, key in ipairs(dict.keys) do kwargs[values.string(key)] = values.get(dict, key) end
  end
  return args, kwargs
end

function Machine:call(callee, args, kwargs)
  values.defined(callee)
  if not values.is_callable(callee) then fault.raise("a " .. values.type(callee) .. " cannot be called") end
  return callee.call(self, args, kwargs)
end

function expressions.call(self, node, scope)
  local callee = self:eval(node.callee, scope)
  local args, kwargs = self:arguments(node.call, scope)
  self.line = node.line
  return self:call(callee, args, kwargs)
end

-- filter(name, value, args, kwargs): also used by the filter `map`.
function Machine:filter(name, value, args, kwargs)
  if not filters[name] then fault.raise("unknown filter '" .. name .. "'", "unsupported") end
  return filters[name](self, value, args, kwargs)
end

function Machine:test(name, value, args)
  if not tests[name] then fault.raise("unknown test '" .. name .. "'", "unsupported") end
  return tests[name](self, value, unpack(args))
end

-- A chain of filters around `content` where the innermost has no operand of its own (set and filter blocks).
local function apply_filter(self, node, content, scope)
  if node == nil then return content end
  local value
  if node.operand and node.operand.kind ~= "filter" then
    value = self:eval(node.operand, scope)
  else
    value = apply_filter(self, node.operand, content, scope)
  end
  local args, kwargs = self:arguments(node.call, scope)
  self.line = node.line
  return self:filter(node.name, value, args, kwargs)
end

function expressions.filter(self, node, scope) return apply_filter(self, node, nil, scope) end

function expressions.test(self, node, scope)
  local value = self:eval(node.operand, scope)
  local args = self:arguments(node.call, scope)
  self.line = node.line
  return self:test(node.name, value, args)
end

-- Statements ------------------------------------------------------------------------------------------------------------

local statements = {}

-- run(body, scope): nil, or "break" / "continue" on its way to the loop.
function Machine:run(body, scope)
  self.depth = self.depth + 1
  if self.depth > MAX_DEPTH then fault.raise("nested more than " .. MAX_DEPTH .. " deep", "memory") end
  local signal
  for _, node in ipairs(body) do
    self.line = node.line
    self:spend(1)
    signal = statements[node.kind](self, node, scope)
    if signal then break end
  end
  self.depth = self.depth - 1
  return signal
end

function statements.data(self, node) self:write(node.text) end
function statements.output(self, node, scope) self:write(self:made(values.string(self:eval(node.value, scope)))) end
statements["break"] = function() return "break" end
statements["continue"] = function() return "continue" end

statements["if"] = function(self, node, scope)
  for _, branch in ipairs(node.branches) do
    if values.truth(self:eval(branch.test, scope)) then return self:run(branch.body, scope) end
  end
  if node.otherwise then return self:run(node.otherwise, scope) end
end

-- assign(target, value, scope): to a name, a namespace's member, or each part of a tuple.
function Machine:assign(target, value, scope)
  if target.kind == "name" then
    scope.names[target.name] = value
  elseif target.kind == "member" then
    local space = find(scope, target.name)
    if not values.is_namespace(space) then fault.raise("'" .. target.name .. "' is not a namespace") end
    values.put(space, target.member, value)
  else
    local items = values.items(values.defined(value))
    if #items ~= #target.items then
      fault.raise(("cannot unpack %d values into %d names"):format(#items, #target.items))
    end
    for i, part in ipairs(target.items) do self:assign(part, items[i], scope) end
  end
end

function statements.set(self, node, scope) self:assign(node.target, self:eval(node.value, scope), scope) end

function statements.set_block(self, node, scope)
  local content = self:capture(node.body, inner(scope))
  self:assign(node.target, apply_filter(self, node.filter, content, scope), scope)
end

function statements.filter_block(self, node, scope)
  local content = self:capture(node.body, inner(scope))
  self:write(values.string(apply_filter(self, node.filter, content, scope)))
end

function statements.scoped(self, node, scope) return self:run(node.body, inner(scope)) end

statements["with"] = function(self, node, scope)
  local inside = inner(scope)
  local given = eval_all(self, node.values, scope)
  for i, name in ipairs(node.names) do self:assign(name, given[i], inside) end
  return self:run(node.body, inside)
end

local function loop_over(self, node, iterable, scope, depth)
  local items = values.items(iterable)
  if node.test then
    local kept = {}
    for _, item in ipairs(items) do
      local inside = inner(scope)
      self:assign(node.target, item, inside)
      if values.truth(self:eval(node.test, inside)) then kept[#kept + 1] = item end
    end
    items = kept
  end
  local recurse = node.recursive and function(again) return loop_over(self, node, again, scope, depth + 1) end
  local loop = functions.loop(items, depth, recurse)
  for i, item in ipairs(items) do
    local inside = inner(scope)
    loop.at(i)
    inside.names.loop = loop
    self:assign(node.target, item, inside)
    if self:run(node.body, inside) == "break" then break end
  end
  if #items == 0 and node.otherwise then return self:run(node.otherwise, inner(scope)) end
end

statements["for"] = function(self, node, scope)
  return loop_over(self, node, self:eval(node.iterable, scope), scope, 1)
end

-- A macro sees the names around its definition, as they are when it is called.
local function make_macro(self, node, scope, name)
  return values.callable("macro '" .. name .. "'", function(_, args, kwargs)
    local inside = inner(scope)
    local names, taken = inside.names, {}
    for i, parameter in ipairs(node.parameters) do
      local value = args[i]
      if value == nil then value, taken[parameter.name] = kwargs[parameter.name], true end
      if value == nil and parameter.default then value = self:eval(parameter.default, inside) end
      if value == nil then value = values.undefined("parameter '" .. parameter.name .. "'") end
      names[parameter.name] = value
    end
    local rest, named = {}, values.dict()
    for i = #node.parameters + 1, #args do rest[#rest + 1] = args[i] end
    local order = {}
    for key in pairs(kwargs) do
      if key ~= "caller" and not taken[key] then order[#order + 1] = key end
    end
    table.sort(order)
    for _, key in ipairs(order) do values.put(named, key, kwargs[key]) end
    if #rest > 0 and not node.takes_rest then
      fault.raise(("macro '%s' takes at most %d arguments, got %d"):format(name, #node.parameters, #args))
    end
    if #order > 0 and not node.takes_named then fault.raise(("macro '%s' has no parameter '%s'"):format(name, order[1])) end
    names.varargs, names.kwargs = values.tuple(rest), named
    if names.caller == nil and kwargs.caller then names.caller = kwargs.caller end
    self.calls = self.calls + 1
    if self.calls > MAX_CALLS then fault.raise("macros call each other more than " .. MAX_CALLS .. " deep", "memory") end
    local result = self:capture(node.body, inside)
    self.calls = self.calls - 1
    return result
  end)
end

-- Whether a macro's body uses `varargs` or `kwargs` decides if it takes more arguments than it names.
local function mentions(tree, name)
  for _, part in pairs(tree) do
    if type(part) == "table" then
      if (part.kind == "name" and part.name == name) or mentions(part, name) then return true end
    end
  end
  return false
end

function statements.macro(self, node, scope)
  node.takes_rest, node.takes_named = mentions(node.body, "varargs"), mentions(node.body, "kwargs")
  scope.names[node.name] = make_macro(self, node, scope, node.name)
end

function statements.call_block(self, node, scope)
  local callee = self:eval(node.call.callee, scope)
  local args, kwargs = self:arguments(node.call.call, scope)
  kwargs.caller = make_macro(self, node, scope, "caller")
  self:write(values.string(self:call(callee, args, kwargs)))
end

local evaluator = {}

-- machine(): the state of one rendering.
function evaluator.machine() return setmetatable({ out = {}, steps = 0, written = 0, depth = 0, calls = 0, line = 1 }, Machine) end

-- render(machine, nodes, variables): the text; variables is a plain Lua table. Raises a fault; machine.line says where.
function evaluator.render(machine, nodes, variables)
  local globals = { names = functions.globals(), parent = nil }
  for name, value in pairs(variables) do globals.names[name] = values.wrap(value) end
  machine:run(nodes, inner(globals))
  return table.concat(machine.out)
end

return evaluator
