-- The tape: what ran, in order, so that gradients can walk back. One tape covers one chunk, is walked once and freed.
--
-- An operation is recorded when an input is tracked (watched, or made by a recorded operation) or is a leaf (a trained
-- tensor with a gradient buffer). Frozen inputs get no gradient, and nothing is computed for them.
local core = require "onn.core.ops"
local tensors = require "onn.core.tensor"
local traced = require "onn.traced"

local Tape = {}
Tape.__index = Tape

local current -- the tape that records now, or nil
local own_starts -- borders of sequences of what is recorded now, where its rows are not the tokens, or nil
local leaves = setmetatable({}, { __mode = "k" }) -- trained tensor -> its f32 gradient, added to

-- Registers `t` as trained: gradients are added to `grad` (f32, t's shape; made of zeros if absent), which is returned.
local function leaf(t, grad)
  grad = grad or leaves[t] or tensors.keep(tensors.zeros("f32", t:shape()))
  leaves[t] = grad
  return grad
end

local function forget(t) leaves[t] = nil end
local function gradient(t) return leaves[t] end

function Tape.new()
  return setmetatable({ nodes = {}, tracked = {}, saved = {}, start = tensors.serial() }, Tape)
end

-- Gradients with respect to `t` are wanted.
function Tape:watch(t) self.tracked[t] = true end

-- Runs f(...) while this tape records; returns what f returns. Tapes nest: the inner one records alone.
function Tape:run(f, ...)
  local outer = current
  current = self
  local ok, a, b, c = xpcall(f, traced, ...)
  current = outer
  if not ok then error(a, 0) end
  return a, b, c
end

-- Runs f without recording: its results are constants.
local function constant(f, ...)
  local outer = current
  current = nil
  local ok, a, b, c = pcall(f, ...)
  current = outer
  if not ok then error(a, 0) end
  return a, b, c
end

-- Runs f(...), whose rows are not the tokens of the batch but some of them: `starts` says where each sequence begins among them.
local function with_starts(starts, f, ...)
  local outer = own_starts
  own_starts = starts
  local ok, a = pcall(f, ...)
  own_starts = outer
  if not ok then error(a, 0) end
  return a
end

-- Applies a rule to inputs; called by onn.ops for every differentiable operation.
local function apply(rule, inputs, ...)
  local tape = current
  local wanted = false
  if tape then
    for i = 1, inputs.n do
      local t = inputs[i]
      if t and (tape.tracked[t] or leaves[t]) then wanted = true break end
    end
  end
  local saved = { keep = wanted, starts = wanted and own_starts or nil }
  local outputs = { rule.forward(saved, inputs, ...) }
  if wanted then
    local node = { rule = rule, inputs = inputs, outputs = outputs, saved = saved }
    tape.nodes[#tape.nodes + 1] = node
    for _, y in ipairs(outputs) do tape.tracked[y] = true end
  end
  return unpack(outputs)
end

-- Gradients met on the way: `owned` ones were made by a rule for this input alone and may be added to in place.
local function accumulate(grads, owned, t, g, shared)
  local old = grads[t]
  if old == g then return end
  if not old then
    grads[t], owned[t] = g, not shared
  elseif owned[t] then
    core.binary(old, g, "add", old)
  else
    grads[t], owned[t] = core.binary(old, g, "add"), true
  end
end

local function add_to_leaf(grad, g)
  if g:dtype() ~= "f32" then g = g:to "f32" end
  core.binary(grad, g, "add", grad)
end

-- Walks back from outputs whose gradients are given ({[tensor] = gradient}); returns {[watched tensor] = gradient}.
-- `starts` cuts sums over tokens (see kernels/ops.def). The tape is empty afterwards.
function Tape:backward(seeds, starts)
  local grads, owned = {}, {}
  for t, g in pairs(seeds) do grads[t] = g end
  for i = #self.nodes, 1, -1 do
    local node = self.nodes[i]
    local dy, any = {}, false
    for k, y in ipairs(node.outputs) do
      dy[k] = grads[y]
      any = any or dy[k] ~= nil
      grads[y] = nil
    end
    if any then
      local inputs = node.inputs
      local context = { starts = node.saved.starts or starts, dy = dy,
        wants = function(k) local t = inputs[k]; return t ~= nil and (self.tracked[t] or leaves[t] ~= nil) end,
        leaf = function(k) return inputs[k] and leaves[inputs[k]] end,
        old = function(k) local t = inputs[k]; return not leaves[t] and owned[t] and grads[t] or nil end }
      local result = { node.rule.backward(node.saved, dy[1], context) }
      for k = 1, inputs.n do
        local t, g = inputs[k], result[k]
        if t and g then
          if leaves[t] then add_to_leaf(leaves[t], g)
          elseif self.tracked[t] then
            local shared = false
            for _, d in pairs(dy) do shared = shared or d == g end
            for j = 1, inputs.n do shared = shared or (j ~= k and result[j] == g) end
            accumulate(grads, owned, t, g, shared)
          end
        end
      end
    end
    self.nodes[i] = nil
  end
  self.tracked = {}
  return grads
end

-- What the backward sweep will read, for onn.scope to keep.
function Tape:kept()
  local kept = {}
  for i, node in ipairs(self.nodes) do kept[i] = node.saved end
  self.saved = kept
  return kept
end

-- Frees what was made under this tape and kept by kept(). For a tape that owns its activations, as a chunk's does.
function Tape:release()
  for _, saved in ipairs(self.saved) do
    for _, t in pairs(saved) do
      if tensors.is_tensor(t) and tensors.serial(t) > self.start then t:free() end
    end
  end
  self.saved, self.nodes, self.tracked = {}, {}, {}
end

-- Does a tape record now, and would a gradient reach `t`?
local function tracked(t) return current ~= nil and (current.tracked[t] or leaves[t] ~= nil) or false end

return { tracked = tracked, with_starts = with_starts, new = Tape.new, apply = apply, constant = constant, leaf = leaf, forget = forget, gradient = gradient,
  recording = function() return current end }
