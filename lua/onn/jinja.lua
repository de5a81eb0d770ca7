-- Chat templates: the part of Jinja that model directories use, interpreted without access to anything but its variables.
-- White space as transformers sets it: trim_blocks and lstrip_blocks on, no newline at the very end of the template.
local evaluator = require "onn.jinja.evaluator"
local fault = require "onn.jinja.fault"
local parser = require "onn.jinja.parser"
local values = require "onn.jinja.values"

local Jinja = {}
local Template = {}
Template.__index = Template

local MAX_SOURCE = 4 * 2 ^ 20

-- compile(text, name): a template; or nil, message, code. The name stands at the head of messages.
function Jinja.compile(text, name)
  name = name or "template"
  if #text > MAX_SOURCE then return nil, name .. ": a template of more than 4 MiB", "format" end
  local ok, nodes = pcall(parser.parse, text)
  if not ok then return nil, fault.describe(nodes, name) end
  return setmetatable({ nodes = nodes, name = name }, Template)
end

-- render(variables): the text; or nil, message, code. Code "argument" means the template itself refused the variables with
-- raise_exception; "memory" that a bound was met. Tables that are json.array or have a first element are lists; the keys
-- of the others are sorted, or keep their order if made by Jinja.object.
function Template:render(variables)
  local machine = evaluator.machine()
  values.charge_to(machine)
  local ok, result = pcall(evaluator.render, machine, self.nodes, variables or {})
  values.charge_to(nil)
  if not ok then return nil, fault.describe(result, self.name, machine.line) end
  return result
end

-- object{ {key, value}, ... }: a mapping for a template's variables, whose keys keep this order.
Jinja.object = values.object

return Jinja
