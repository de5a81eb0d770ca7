-- onn.nn: models of one's own, in a Lua file that ends with `return nn.model { ... }`.
--   local nn = require "onn.nn"
--   return nn.model { input = { 8 }, loss = "square",
--     nn.linear(8, 32), nn.relu(), nn.residual { nn.layer_norm(32), nn.linear(32, 32) }, nn.linear(32, 1) }
-- A module is called with a tensor and gives one: m(x). Its tensors are named by its place, from 0 on, or by its `name` option:
-- "0.weight", "2.1.bias". nn.module makes one of others and a forward of one's own. x (rows, ...) f32 all along.
local definition = require "onn.nn.definition"
local linear = require "onn.nn.linear"
local nearest = require "onn.nearest"
local ops = require "onn.ops"
local run = require "onn.nn.run"
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"
require "onn.tensor"

local nn = { model = definition.model }

local Module = {}
Module.__index = Module
Module.__call = function(self, ...) return self:forward(...) end

local function options_of(given, known, where)
  given = given or {}
  nearest.check(given, known, where)
  return given
end

local function positive(n, where)
  if type(n) ~= "number" or n < 1 or n ~= math.floor(n) then error(("%s: sizes are positive integers, found %s"):format(where, tostring(n)), 3) end
  return n
end

local function module(m) return setmetatable(m, Module) end

-- fields: modules by name, and forward(self, x, ...) that gives a tensor; `name`, optional.
function nn.module(fields)
  if type(fields.forward) ~= "function" then error("nn.module: a function `forward` is needed", 2) end
  local m, children = {}, {}
  for key, value in pairs(fields) do
    m[key] = value
    if getmetatable(value) == Module then children[#children + 1] = { value.name or key, value } end
  end
  table.sort(children, function(a, b) return a[1] < b[1] end)
  m.children = children
  return module(m)
end

local function list_of(list, forward)
  local children = {}
  for i, m in ipairs(list) do children[i] = { m.name or tostring(i - 1), m } end
  return module { name = list.name, children = children, forward = forward }
end

-- Rows of the batch that goes through now.
function nn.rows() return run.rows() end

-- One module after another.
function nn.sequential(list)
  return list_of(list, function(self, x)
    for _, child in ipairs(self.children) do x = child[2](x) end
    return x
  end)
end

-- x + what the modules make of it.
function nn.residual(list)
  local inner = nn.sequential(list)
  return module { name = list.name, children = inner.children, forward = function(_, x) return ops.add(x, inner(x)) end }
end

-- A function of a tensor as a module without weights; nn.relu(), nn.tanh(), ... are such.
function nn.apply(f) return module { forward = function(_, x, ...) return f(x, ...) end } end
for _, name in ipairs { "relu", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh", "softmax" } do
  nn[name] = function() return nn.apply(ops[name]) end
end

-- Rows keep their number, the rest takes this shape: nn.view(3, 8) makes (rows, 24) (rows, 3, 8); nn.flatten() makes (rows, all).
function nn.view(...)
  local shape = { ... }
  return nn.apply(function(x) return ops.view(ops.contiguous(x), { x:size(1), unpack(shape) }) end)
end
function nn.flatten() return nn.apply(function(x) return ops.view(ops.contiguous(x), { x:size(1), x:numel() / x:size(1) }) end) end

-- Dropout in training, by the rows' own numbers.
function nn.dropout(p)
  return module { forward = function(self, x)
    local ctx = run.ctx()
    if not ctx.training or p == 0 then return x end
    local shape, rows = x:shape(), x:size(1)
    local flat = ops.view(ops.contiguous(x), { rows, x:numel() / rows })
    local site = ("%s/dropout/%d"):format(self.path, ctx.epoch or 0)
    return ops.view(ops.dropout(flat, p, { seed = ctx.seed or 0, site = site, counter = 0 }, ctx.rows), shape)
  end }
end

-- x (..., into) -> (..., out). options: bias (true), name. An adapter may sit on it.
function nn.linear(into, out, options)
  options = options_of(options, { "bias", "name" }, "nn.linear")
  positive(into, "nn.linear")
  positive(out, "nn.linear")
  return module { name = options.name, out = out, layers = { { role = "", out = out, into = into, tensor = ".weight" } },
    parameters = { { ".weight", "", { out, into }, initial = { "uniform", 1 / math.sqrt(into) } },
      options.bias ~= false and { ".bias", "_bias", { out }, initial = { "uniform", 1 / math.sqrt(into) } } or nil },
    forward = function(self, x)
      local shape = x:shape()
      if shape[#shape] ~= into then error(("nn.linear(%d, %d): its input is %s"):format(into, out, x:describe()), 0) end
      return run.by_rows(x, x:numel() / into, function() return linear(run.weight(self.path), x, run.ctx()) end)
    end }
end

-- ids i32 (rows) or (rows, n) -> (rows, width) or (rows, n, width).
function nn.embedding(count, width, options)
  options = options_of(options, { "name" }, "nn.embedding")
  return module { name = options.name, out = width, parameters = { { ".weight", ".weight", { count, width }, initial = { "normal", 1 } } },
    forward = function(self, ids)
      local shape = ids:shape()
      shape[#shape + 1] = width
      return ops.view(ops.embedding(run.weight(self.path .. ".weight"), ids:contiguous():view { ids:numel() }, "f32"), shape)
    end }
end

local function norm(name, biased)
  return function(width, options)
    options = options_of(options, { "eps", "name" }, "nn." .. name)
    positive(width, "nn." .. name)
    return module { name = options.name, out = width,
      parameters = { { ".weight", ".weight", { width }, initial = { "constant", 1 } },
        biased and { ".bias", ".bias", { width }, initial = { "constant", 0 } } or nil },
      forward = function(self, x)
        return run.by_rows(x, x:numel() / width, function()
          local w, b = run.weight(self.path .. ".weight"), biased and run.weight(self.path .. ".bias")
          if biased then return ops.layer_norm(x, w, b, options.eps or 1e-5) end
          return ops.rms_norm(x, w, options.eps or 1e-6)
        end)
      end }
  end
end
nn.layer_norm, nn.rms_norm = norm("layer_norm", true), norm("rms_norm", false)

local function pair(v) return type(v) == "table" and v or { v, v } end

-- A weight seen with another shape; its gradient goes to the same buffer.
local function reshaped(w, shape)
  local seen, gradient = w:view(shape), tape.gradient(w)
  if gradient then tape.leaf(seen, gradient:view(shape)) end
  return seen
end

local function convolution(where, into, out, options, kernel, forward)
  local groups = options.groups or 1
  local fan = positive(into, where) / groups
  for _, k in ipairs(kernel) do fan = fan * k end
  return module { name = options.name, out = positive(out, where),
    parameters = { { ".weight", ".weight", { out, into / groups, unpack(kernel) }, initial = { "uniform", 1 / math.sqrt(fan) } },
      options.bias ~= false and { ".bias", ".bias", { out }, initial = { "uniform", 1 / math.sqrt(fan) } } or nil },
    forward = function(self, x)
      return forward(x, run.weight(self.path .. ".weight"), options.bias ~= false and run.weight(self.path .. ".bias") or nil)
    end }
end
local convolved_with = { "stride", "padding", "dilation", "groups", "bias", "name" }

-- x (rows, into, h, w) -> (rows, out, h', w'). kernel, stride, padding, dilation: a number or {h, w}.
function nn.conv2d(into, out, kernel, options)
  options = options_of(options, convolved_with, "nn.conv2d")
  local padding = pair(options.padding or 0)
  local how = { stride = pair(options.stride or 1), padding = { padding[1], padding[2], padding[1], padding[2] },
    dilation = pair(options.dilation or 1), groups = options.groups }
  return convolution("nn.conv2d", into, out, options, pair(kernel), function(x, w, b) return ops.conv(x, w, b, how) end)
end

-- x (rows, into, length) -> (rows, out, length').
function nn.conv1d(into, out, kernel, options)
  options = options_of(options, convolved_with, "nn.conv1d")
  local padding = options.padding or 0
  local how = { stride = { 1, options.stride or 1 }, padding = { 0, padding, 0, padding }, dilation = { 1, options.dilation or 1 },
    groups = options.groups }
  return convolution("nn.conv1d", into, out, options, { kernel }, function(x, w, b)
    local s = w:shape()
    local y = ops.conv(ops.view(ops.contiguous(x), { x:size(1), into, 1, x:size(3) }), reshaped(w, { s[1], s[2], 1, s[3] }), b, how)
    return ops.view(y, { y:size(1), out, y:size(4) })
  end)
end

local gates = { tanh = 1, relu = 1, lstm = 4, gru = 3 }

-- x (rows, steps, into) -> y (rows, steps, out), the state after the last step {first, first_cell}. options: bidirectional, projection
-- (LSTM), bias (true), names (of the four tensors, torch.nn's by default), name. m(x, state): begins with that state, which gets no gradient.
local function recurrent(cell, where)
  return function(into, hidden, options)
    options = options_of(options, { "bidirectional", "projection", "bias", "names", "name" }, where)
    local state_width, rows = options.projection or positive(hidden, where), gates[cell] * hidden
    local m = { name = options.name, out = state_width * (options.bidirectional and 2 or 1), layers = {}, parameters = {} }
    local suffixes = options.bidirectional and { "", "_reverse" } or { "" }
    local names = options.names or { "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_hr_l0" }
    for _, suffix in ipairs(suffixes) do
      local initial = { "uniform", 1 / math.sqrt(hidden) }
      local function add(k, role, ...) m.parameters[#m.parameters + 1] = { "." .. names[k] .. suffix, role, { ... }, initial = initial } end
      for k, part in ipairs { "ih", "hh" } do
        local role, width = "." .. part .. suffix, k == 1 and into or state_width
        add(k, role, rows, width)
        if options.bias ~= false then add(k + 2, role .. "_bias", rows) end
        m.layers[#m.layers + 1] = { role = role, out = rows, into = width, tensor = "." .. names[k] .. suffix, whole = true }
      end
      if options.projection then add(5, ".hr" .. suffix, state_width, hidden) end
    end
    function m:forward(x, state)
      local n, steps, starts = x:size(1), x:size(2), {}
      for s = 0, n do starts[s + 1] = s * steps end
      starts = tensors.from_table(starts, "i32")
      local flat, parts, last = ops.view(ops.contiguous(x), { n * steps, into }), {}, nil
      local y = run.by_rows(flat, n * steps, function()
        for d, suffix in ipairs(suffixes) do
          local hh = run.weight(self.path .. ".hh" .. suffix)
          local a, how = hh.adapter, { cell = cell, reverse = d == 2, scale = hh.adapter and hh.adapter.scale }
          local gx = linear(run.weight(self.path .. ".ih" .. suffix), flat, { training = run.ctx().training })
          local h, c
          parts[d], h, c = ops.recurrent(gx, hh.weight, hh.bias, options.projection and run.weight(self.path .. ".hr" .. suffix) or nil,
            a and a.a, a and a.b, how, starts, d == 1 and state or nil)
          if d == 1 then last = { first = h, first_cell = c } end
        end
        return parts[2] and ops.cat(parts[1], parts[2], 2) or parts[1]
      end)
      return ops.view(y, { n, steps, m.out }), last
    end
    return module(m)
  end
end
nn.rnn, nn.lstm, nn.gru = recurrent("tanh", "nn.rnn"), recurrent("lstm", "nn.lstm"), recurrent("gru", "nn.gru")

return nn
