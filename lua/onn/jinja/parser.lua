-- Tokens -> a tree of nodes {kind, line, ...}. Expressions follow Jinja's own ranking of operators, from weak to strong:
-- if-else, or, and, not, comparisons, + -, ~, * / // %, **, signs, then subscripts, calls, filters and tests.
local fault = require "onn.jinja.fault"
local lexer = require "onn.jinja.lexer"

local MAX_DEPTH = 120
local Parser = {}
Parser.__index = Parser

function Parser:fail(message, line) fault.raise(message, "format", line or self.token.line) end

function Parser:advance()
  local token = self.token
  self.index = self.index + 1
  self.token = self.tokens[self.index] or token
  return token
end

local function shown(token)
  if token.type == "eof" then return "the end of the template" end
  if token.type == "name" then return "'" .. token.value .. "'" end
  if token.type == "block_end" then return "'%}'" end
  if token.type == "variable_end" then return "'}}'" end
  return token.value ~= nil and token.type .. " " .. tostring(token.value) or "'" .. token.type .. "'"
end

function Parser:is(type, value) return self.token.type == type and (value == nil or self.token.value == value) end

function Parser:look(type, value)
  local token = self.tokens[self.index + 1]
  return token and token.type == type and (value == nil or token.value == value)
end

function Parser:accept(type, value)
  if self:is(type, value) then return self:advance() end
end

function Parser:expect(type, value)
  if not self:is(type, value) then
    self:fail(("expected %s, found %s"):format(value and "'" .. value .. "'" or type, shown(self.token)))
  end
  return self:advance()
end

function Parser:node(kind, fields)
  fields.kind = kind
  fields.line = fields.line or self.token.line
  return fields
end

-- Every rule that can contain itself goes through here, so that the depth of the tree is bounded.
function Parser:nested(rule, ...)
  self.depth = self.depth + 1
  if self.depth > MAX_DEPTH then fault.raise("nested more than " .. MAX_DEPTH .. " deep", "memory", self.token.line) end
  local node = rule(self, ...)
  self.depth = self.depth - 1
  return node
end

-- Expressions ---------------------------------------------------------------------------------------------------------

local condition, unary

function Parser:expression() return self:nested(condition) end

local function binary(operators, operand)
  return function(self)
    local left = operand(self)
    while operators[self.token.type] do
      local op = self:advance()
      left = self:node("binary", { op = op.type, left = left, right = operand(self), line = op.line })
    end
    return left
  end
end

local power = binary({ ["**"] = true }, function(self) return self:nested(unary) end)
local product = binary({ ["*"] = true, ["/"] = true, ["//"] = true, ["%"] = true }, power)

local function concat(self)
  local first = product(self)
  if not self:is("~") then return first end
  local parts = { first }
  while self:accept("~") do parts[#parts + 1] = product(self) end
  return self:node("concat", { parts = parts })
end

local sum = binary({ ["+"] = true, ["-"] = true }, concat)

local COMPARISONS = { ["=="] = true, ["!="] = true, ["<"] = true, ["<="] = true, [">"] = true, [">="] = true }

local function comparison(self)
  local first, line, steps = sum(self), self.token.line, {}
  while true do
    local op
    if COMPARISONS[self.token.type] then
      op = self:advance().type
    elseif self:accept("name", "in") then
      op = "in"
    elseif self:is("name", "not") and self:look("name", "in") then
      self:advance()
      self:advance()
      op = "not in"
    else
      break
    end
    steps[#steps + 1] = { op = op, right = sum(self) }
  end
  if #steps == 0 then return first end
  return self:node("compare", { left = first, steps = steps, line = line })
end

local function negation(self)
  local token = self:accept("name", "not")
  if not token then return comparison(self) end
  return self:node("not", { operand = self:nested(negation), line = token.line })
end

local function logical(word, operand)
  return function(self)
    local left = operand(self)
    while self:is("name", word) do
      local line = self:advance().line
      left = self:node(word, { left = left, right = operand(self), line = line })
    end
    return left
  end
end

local disjunction = logical("or", logical("and", negation))

function condition(self)
  local value = disjunction(self)
  while self:is("name", "if") do
    local line = self:advance().line
    local test = disjunction(self)
    local otherwise = self:accept("name", "else") and self:nested(condition) or nil
    value = self:node("condition", { test = test, yes = value, no = otherwise, line = line })
  end
  return value
end

local TUPLE_ENDS = { variable_end = true, block_end = true, [")"] = true }

-- One expression, or a tuple where commas follow. parse_item reads one element; in_ends stops before `in` (loop targets).
local function tuple(self, parse_item, options)
  local items, is_tuple, line = {}, false, self.token.line
  while true do
    if #items > 0 then self:expect(",") end
    if TUPLE_ENDS[self.token.type] or (options.in_ends and self:is("name", "in")) then break end
    items[#items + 1] = parse_item(self)
    if not self:is(",") then break end
    is_tuple = true
  end
  if not is_tuple then
    if items[1] then return items[1] end
    if not options.parentheses then self:fail("expected an expression, found " .. shown(self.token)) end
  end
  return self:node("tuple", { items = items, line = line })
end

function Parser:tuple_expression() return tuple(self, self.expression, {}) end

local function items_until(self, close, parse_item)
  local items = {}
  while not self:is(close) do
    if #items > 0 then self:expect(",") end
    if self:is(close) then break end
    items[#items + 1] = parse_item(self)
  end
  self:expect(close)
  return items
end

local function dict_entry(self)
  local key = self:expression()
  self:expect(":")
  return { key = key, value = self:expression() }
end

local CONSTANTS = { ["true"] = true, ["True"] = true, ["false"] = false, ["False"] = false }

local function primary(self)
  local token = self.token
  local line = token.line
  if token.type == "name" then
    self:advance()
    if CONSTANTS[token.value] ~= nil then return self:node("constant", { value = CONSTANTS[token.value], line = line }) end
    if token.value == "none" or token.value == "None" then return self:node("none", { line = line }) end
    return self:node("name", { name = token.value, line = line })
  elseif token.type == "string" then
    local parts = {}
    while self:is("string") do parts[#parts + 1] = self:advance().value end
    return self:node("constant", { value = table.concat(parts), line = line })
  elseif token.type == "integer" then
    return self:node("constant", { value = self:advance().value, line = line })
  elseif token.type == "float" then
    return self:node("float", { value = self:advance().value, line = line })
  elseif self:accept("(") then
    local node = tuple(self, self.expression, { parentheses = true })
    self:expect(")")
    return node
  elseif self:accept("[") then
    return self:node("list", { items = items_until(self, "]", self.expression), line = line })
  elseif self:accept("{") then
    return self:node("dict", { entries = items_until(self, "}", dict_entry), line = line })
  end
  self:fail("unexpected " .. shown(token))
end

-- args, kwargs (array of {name, value}), spread (*x), spread_named (**x)
local function call_arguments(self)
  local call = { args = {}, kwargs = {} }
  self:expect("(")
  local first = true
  while not self:is(")") do
    if not first then
      self:expect(",")
      if self:is(")") then break end
    end
    first = false
    if self:accept("*") then
      if call.spread or call.spread_named then self:fail "'*' is given twice in a call" end
      call.spread = self:expression()
    elseif self:accept("**") then
      if call.spread_named then self:fail "'**' is given twice in a call" end
      call.spread_named = self:expression()
    elseif self:is("name") and self:look("=") then
      local name = self:advance().value
      self:advance()
      call.kwargs[#call.kwargs + 1] = { name = name, value = self:expression() }
    else
      if call.spread or call.spread_named or #call.kwargs > 0 then self:fail "a positional argument follows a named one" end
      call.args[#call.args + 1] = self:expression()
    end
  end
  self:expect(")")
  return call
end

local function subscripted(self)
  local function bound() return not (self:is(":") or self:is("]") or self:is(",")) and self:expression() or nil end
  local line = self.token.line
  local start = bound()
  if not self:accept(":") then return start or self:fail("unexpected " .. shown(self.token)) end
  local slice = self:node("slice", { start = start, stop = bound(), line = line })
  if self:accept(":") then slice.step = bound() end
  return slice
end

local function postfix(self, node)
  while true do
    local line = self.token.line
    if self:accept(".") then
      local key = self:accept("integer")
      if key then
        node = self:node("item", { object = node, key = self:node("constant", { value = key.value }), line = line })
      else
        node = self:node("attribute", { object = node, name = self:expect("name").value, line = line })
      end
    elseif self:accept("[") then
      local keys = items_until(self, "]", subscripted)
      if #keys ~= 1 then self:fail("expected one subscript", line) end
      node = self:node("item", { object = node, key = keys[1], line = line })
    elseif self:is("(") then
      node = self:node("call", { callee = node, call = call_arguments(self), line = line })
    else
      return node
    end
  end
end

local function filter(self, node)
  local name = self:expect("name")
  local call = self:is("(") and call_arguments(self) or { args = {}, kwargs = {} }
  return self:node("filter", { operand = node, name = name.value, call = call, line = name.line })
end

local TEST_ARGUMENT = { name = true, string = true, integer = true, float = true, ["("] = true, ["["] = true, ["{"] = true }
local NOT_AN_ARGUMENT = { ["else"] = true, ["or"] = true, ["and"] = true }

local function test(self, node)
  local line = self.token.line
  local negated = self:accept("name", "not")
  local name = self:expect("name").value
  local call = { args = {}, kwargs = {} }
  if self:is("(") then
    call = call_arguments(self)
  elseif TEST_ARGUMENT[self.token.type] and not (self:is("name") and NOT_AN_ARGUMENT[self.token.value]) then
    if self:is("name", "is") then self:fail "tests cannot be chained with 'is'" end
    call.args[1] = postfix(self, primary(self))
  end
  local result = self:node("test", { operand = node, name = name, call = call, line = line })
  return negated and self:node("not", { operand = result, line = line }) or result
end

function unary(self, without_filter)
  local line, node = self.token.line
  if self:is("-") or self:is("+") then
    local op = self:advance().type
    node = self:node("sign", { op = op, operand = self:nested(unary, true), line = line })
  else
    node = primary(self)
  end
  node = postfix(self, node)
  while not without_filter do
    if self:accept("|") then
      node = filter(self, node)
    elseif self:accept("name", "is") then
      node = test(self, node)
    elseif self:is("(") then
      node = self:node("call", { callee = node, call = call_arguments(self), line = line })
    else
      break
    end
  end
  return node
end

-- Statements ----------------------------------------------------------------------------------------------------------

local function target_item(self)
  local line = self.token.line
  if self:accept("(") then
    local node = tuple(self, target_item, { parentheses = true })
    self:expect(")")
    return node
  end
  local name = self:expect("name").value
  if CONSTANTS[name] ~= nil or name == "none" or name == "None" then self:fail("cannot assign to '" .. name .. "'", line) end
  if self.allow_member and self:accept(".") then
    return self:node("member", { name = name, member = self:expect("name").value, line = line })
  end
  return self:node("name", { name = name, line = line })
end

-- What `for` and `set` assign to; `set` also takes namespace members.
local function target(self, options)
  self.allow_member = options.member
  local node = tuple(self, target_item, { in_ends = options.in_ends })
  self.allow_member = false
  return node
end

local statements = {}

-- body(ends...): nodes up to one of the tags named, whose name is consumed and returned second.
function Parser:body(ends, opened)
  local body = self:nested(self.nodes, ends, opened)
  return body, self:advance().value
end

function Parser:end_tag() self:expect "block_end" end

statements["for"] = function(self, line)
  local node = self:node("for", { line = line })
  node.target = target(self, { in_ends = true })
  self:expect("name", "in")
  node.iterable = tuple(self, disjunction, {})
  if self:accept("name", "if") then node.test = self:expression() end
  node.recursive = self:accept("name", "recursive") ~= nil
  self:end_tag()
  self.loops = self.loops + 1
  local ending
  node.body, ending = self:body({ ["else"] = true, ["endfor"] = true }, line)
  self.loops = self.loops - 1
  if ending == "else" then
    self:end_tag()
    node.otherwise = self:body({ ["endfor"] = true }, line)
  end
  return node
end

statements["if"] = function(self, line)
  local node = self:node("if", { branches = {}, line = line })
  local ending
  repeat
    local test_node = tuple(self, self.expression, {})
    self:end_tag()
    local body, tag = self:body({ ["elif"] = true, ["else"] = true, ["endif"] = true }, line)
    node.branches[#node.branches + 1] = { test = test_node, body = body }
    ending = tag
  until ending ~= "elif"
  if ending == "else" then
    self:end_tag()
    node.otherwise = self:body({ ["endif"] = true }, line)
  end
  return node
end

function statements.set(self, line)
  local where = target(self, { member = true })
  if self:accept "=" then
    return self:node("set", { target = where, value = self:tuple_expression(), line = line })
  end
  local node = self:node("set_block", { target = where, line = line })
  while self:accept "|" do node.filter = filter(self, node.filter) end
  self:end_tag()
  node.body = self:body({ endset = true }, line)
  return node
end

local function parameters(self)
  local list = {}
  self:expect "("
  while not self:is ")" do
    if #list > 0 then self:expect "," end
    local parameter = { name = self:expect("name").value }
    if self:accept "=" then
      parameter.default = self:expression()
    elseif #list > 0 and list[#list].default then
      self:fail "a parameter without a default follows one with a default"
    end
    list[#list + 1] = parameter
  end
  self:expect ")"
  return list
end

function statements.macro(self, line)
  local node = self:node("macro", { name = self:expect("name").value, line = line })
  node.parameters = parameters(self)
  self:end_tag()
  local loops = self.loops
  self.loops = 0
  node.body = self:body({ endmacro = true }, line)
  self.loops = loops
  return node
end

function statements.call(self, line)
  local node = self:node("call_block", { line = line })
  node.parameters = self:is "(" and parameters(self) or {}
  node.call = self:expression()
  if node.call.kind ~= "call" then self:fail("expected a call after '{% call'", line) end
  self:end_tag()
  node.body = self:body({ endcall = true }, line)
  return node
end

function statements.filter(self, line)
  local node = self:node("filter_block", { line = line, filter = filter(self, nil) })
  while self:accept "|" do node.filter = filter(self, node.filter) end
  self:end_tag()
  node.body = self:body({ endfilter = true }, line)
  return node
end

statements["with"] = function(self, line)
  local node = self:node("with", { names = {}, values = {}, line = line })
  while not self:is "block_end" do
    if #node.names > 0 then self:expect "," end
    node.names[#node.names + 1] = target(self, {})
    self:expect "="
    node.values[#node.values + 1] = self:expression()
  end
  self:end_tag()
  node.body = self:body({ endwith = true }, line)
  return node
end

-- Marks what the assistant said; the text is rendered as it stands.
function statements.generation(self, line)
  self:end_tag()
  return self:node("scoped", { body = self:body({ endgeneration = true }, line), line = line })
end

local function jump(kind)
  return function(self, line)
    if self.loops == 0 then self:fail("'" .. kind .. "' outside a loop", line) end
    return self:node(kind, { line = line })
  end
end
statements["break"], statements["continue"] = jump "break", jump "continue"

local ELSEWHERE = { include = true, import = true, from = true, extends = true, block = true, autoescape = true }

-- Nodes until a tag in `ends` (its name is the current token then), or until the end where ends is nil.
function Parser:nodes(ends, opened)
  local body = {}
  while true do
    local token = self.token
    if token.type == "data" then
      body[#body + 1] = self:node("data", { text = self:advance().value, line = token.line })
    elseif self:accept "variable_begin" then
      body[#body + 1] = self:node("output", { value = self:tuple_expression(), line = token.line })
      self:expect "variable_end"
    elseif self:accept "block_begin" then
      if self:is "name" and ends and ends[self.token.value] then return body end
      local name = self:expect("name").value
      if not statements[name] then
        if ELSEWHERE[name] then fault.raise("'{% " .. name .. "' is not part of chat templates", "unsupported", token.line) end
        self:fail("unknown tag '" .. name .. "'", token.line)
      end
      body[#body + 1] = statements[name](self, token.line)
      self:expect "block_end"
    else
      if ends then self:fail(("the tag opened in line %d is not closed"):format(opened)) end
      return body
    end
  end
end

local parser = {}

-- parse(source): the template's nodes. Raises a fault.
function parser.parse(source)
  local tokens = lexer.tokens(source)
  local self = setmetatable({ tokens = tokens, index = 1, token = tokens[1], depth = 0, loops = 0 }, Parser)
  return self:nodes(nil)
end

return parser
