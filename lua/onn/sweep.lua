-- The two sweeps of training, layer by layer: for each stage all micro-batches, forward to the loss, then back to the lowest trained
-- stage. A stage's tape is kept from the forward sweep or rebuilt in the backward one from its input: the same bits either way.
-- Hidden states between stages, and their gradients, are carries (onn.carries): they may lie on disk until they are due. What the
-- frozen stages below the lowest trained one give may be known already (onn.prefix): then the sweep begins above them.
local Carries = require "onn.carries"
local core = require "onn.core.ops"
local scope = require "onn.scope"
local signals = require "onn.core.signals"
local tape = require "onn.autograd.tape"
local tensors = require "onn.core.tensor"
local trace = require "onn.trace"

local sweep = {}

-- Number of the first stage with something trained in it (1-based), or one past the last stage.
function sweep.lowest(model)
  for i, stage in ipairs(model.stages) do
    if stage.trained then return i end
    for _, layer in ipairs(stage.layers) do if layer.adapter then return i end end
  end
  return #model.stages + 1
end

-- One run over the micro-batches. Times of need, for the carries: stage i's forward at i, its backward at 2 * last - i.
local Run = {}
Run.__index = Run

local function new_run(model, micros, opt)
  local last, lowest = #model.stages, opt.lowest or sweep.lowest(model)
  local self = setmetatable({ model = model, last = last, lowest = lowest, items = {}, count = #micros, first = 1, prefix = opt.prefix,
    carries = opt.carries or Carries.new { quota = math.huge }, together = opt.head_together or #micros,
    back = opt.training and lowest <= last }, Run)
  self.keep_from = opt.keep_from or (opt.recompute and last or lowest)
  local sequences = 0
  for m, batch in ipairs(micros) do
    local ctx = { dtype = model.dtype, training = opt.training, seed = opt.seed, epoch = opt.epoch, labels = batch.labels,
      rows = batch.rows, loss_scale = opt.scale }
    if opt.memory then
      local count = batch.starts:size(1) - 1
      ctx.memory, sequences = opt.memory:part(sequences, count), sequences + count
    end
    self.items[m] = { batch = batch, ctx = ctx, base = model:carry(batch), number = m, tapes = {}, ins = {}, outs = {}, first = 1 }
  end
  return self
end

local function key(kind, i, item) return ("%s:%d:%d"):format(kind, i, item.number) end
local function due(self, time, item) return time + item.number / (self.count + 1) end

function Run:put(kind, i, item, tensor, time) self.carries:put(key(kind, i, item), tensor, due(self, time, item)) end
function Run:get(kind, i, item) return self.carries:get(key(kind, i, item)) end

-- Lets a carry go until `time`, or for good.
function Run:release(kind, i, item, time) self.carries:release(key(kind, i, item), time and due(self, time, item) or nil) end

-- Takes up what of the frozen prefix is known, and begins above it.
function Run:recall()
  local lowest = self.lowest
  self.first = self.last
  for _, item in ipairs(self.items) do
    local known = self.prefix and lowest > 2 and self.prefix:get(item.batch)
    if known then
      item.first = lowest
      self:put("h", lowest, item, known, lowest)
    end
    self.first = math.min(self.first, item.first)
  end
end

-- The stages in the order in which this run visits them, for the weights to be read ahead.
function Run:announce()
  if not self.model.ring then return end
  local visits, tokens = {}, 0
  for _, item in ipairs(self.items) do tokens = math.max(tokens, item.batch.tokens or math.huge) end
  local function add(i, times, forward, backward)
    visits[#visits + 1] = { at = i, times = times, tokens = tokens, forward = forward, backward = backward }
  end
  for i = self.first, self.last - 1 do
    local times = 0
    for _, item in ipairs(self.items) do if i >= item.first then times = times + 1 end end
    add(i, times, true, false)
  end
  for _ = 1, math.ceil(#self.items / self.together) do add(self.last, 1, true, false) end
  for i = self.last - 1, self.back and self.lowest or self.last, -1 do add(i, #self.items, i < self.keep_from, true) end
  self.model.ring:schedule(visits)
end

-- A long sweep ends here when the user has asked to stop; what was finished before it stands.
local function check_signals(model)
  if model.ring and signals.pending() then error(sweep.interrupted, 0) end
end
sweep.interrupted = "interrupted in the middle of a sweep"

local function carry_of(item, hidden)
  local carry = {}
  for k, v in pairs(item.base) do carry[k] = v end
  carry.hidden = hidden
  return carry
end

-- Runs step(carry) so that `t` records it and what the backward sweep reads stays; returns the new carry.
local function record(t, step, carry)
  return (scope(function()
    local result = t:run(step, carry)
    return result, t:kept()
  end))
end

-- Stage i under a fresh tape, which walks back to the carry's hidden state if that is `watched`; returns the tape and the new carry.
local function taped(model, i, carry, ctx, watched)
  local t = tape.new()
  if watched then t:watch(carry.hidden) end
  return t, record(t, function(c) return model.run(model.sizes, model.stages[i], c, ctx) end, carry)
end
sweep.taped = taped

-- Walks a tape back from `out`, whose gradient is dy, and frees it; returns the gradient of `before`, nil where that is nil.
local function walked(t, out, dy, before, starts)
  local began = tensors.serial()
  local dx = scope(function()
    local g = t:backward({ [out] = dy }, starts)[before or false]
    return g and tensors.serial(g) <= began and g:clone() or g -- the head's own goes with its tape
  end)
  t:release()
  return dx
end
sweep.walked = walked

-- One micro-batch through stage i, which is not the last.
function Run:step(i, item)
  local model, began = self.model, trace.now()
  local hidden = i > 1 and self:get("h", i, item) or nil
  local carry = carry_of(item, hidden)
  local out
  local above = self.back and i >= self.lowest
  local kept = above and i >= self.keep_from
  if kept then
    item.tapes[i], out = taped(model, i, carry, item.ctx, i > self.lowest)
    item.ins[i], item.outs[i] = hidden, out.hidden
  else
    out = scope(model.run, model.sizes, model.stages[i], carry, item.ctx)
  end
  if self.prefix and i + 1 == self.lowest and i > 1 then self.prefix:put(item.batch, out.hidden) end
  self:put("h", i + 1, item, out.hidden, i + 1)
  if hidden and not kept then self:release("h", i, item, above and 2 * self.last - i or nil) end
  trace.span(model.stages[i].name, "forward", began, { tokens = item.batch.tokens })
end

function Run:forward()
  for i = self.first, self.last - 1 do
    check_signals(self.model)
    self.model:visit(i, function()
      for _, item in ipairs(self.items) do if i >= item.first then self:step(i, item) end end
    end)
  end
end

-- The gradient of one micro-batch through stage i's tape, walked and freed.
local function walk(self, i, item, t, out, dy)
  local before = item.ins[i]
  local dx = walked(t, out, dy, before, item.base.starts)
  if before then
    item.ins[i] = nil
    self:release("h", i, item)
  end
  if i > self.lowest then self:put("g", i - 1, item, dx, 2 * self.last - i + 1) end
end

-- The head and the loss of some items, with tapes also their way back: nothing of the head stays. Returns total + the sums of nll.
function Run:head(items, total)
  local model, last, back, began = self.model, self.last, self.back, trace.now()
  for _, item in ipairs(items) do
    item.ins[last] = self:get("h", last, item)
    item.carry = carry_of(item, item.ins[last])
    if back then
      item.tapes[last] = tape.new()
      if last > self.lowest then item.tapes[last]:watch(item.ins[last]) end
    end
  end
  model:run_head(items, function(item, step)
    item.carry = back and record(item.tapes[last], step, item.carry) or scope(step, item.carry)
  end, function(item)
    total = item.ctx.dry and total or core.running_sum(item.carry.nll, total)
    local input = item.carry.last_hidden
    if input and input ~= item.carry.hidden then input:free() end
    if back then
      walk(self, last, item, item.tapes[last], item.carry.nll, item.carry.nll) -- the head's rule made its gradient on the way forward
    else
      self:release("h", last, item)
    end
    item.carry.nll:free()
    item.carry, item.tapes[last] = nil, nil
  end)
  trace.span(model.stages[last].name, "forward", began)
  return total
end

function Run:heads(total)
  for from = 1, #self.items, self.together do
    check_signals(self.model)
    local some = {}
    for m = from, math.min(from + self.together - 1, #self.items) do some[#some + 1] = self.items[m] end
    total = self:head(some, total)
  end
  return total
end

function Run:backward()
  for i = self.last - 1, self.lowest, -1 do
    check_signals(self.model)
    self.model:visit(i, function()
      for _, item in ipairs(self.items) do
        local began, t, out = trace.now(), item.tapes[i], item.outs[i]
        local rebuilt = not t
        if rebuilt then
          local again
          item.ins[i] = i > 1 and self:get("h", i, item) or nil
          item.ctx.repeated = true -- running statistics have moved already
          t, again = taped(self.model, i, carry_of(item, item.ins[i]), item.ctx, i > self.lowest)
          out = again.hidden
        end
        walk(self, i, item, t, out, self:get("g", i, item))
        self:release("g", i, item)
        if rebuilt then out:free() end
        item.tapes[i], item.outs[i] = nil, nil
        trace.span(self.model.stages[i].name, "backward", began, { tokens = item.batch.tokens, rebuilt = rebuilt })
      end
    end)
  end
end

-- Ends a run; after an error it frees what the run holds.
local function finish(run, ok, result)
  if ok then return result end
  for _, item in ipairs(run.items) do for _, t in pairs(item.tapes) do t:release() end end
  run.carries:clear()
  error(result, 0)
end

-- The head's part of a run alone, for a dry run (onn.plan.memory): `hidden` makes what comes in for each micro-batch; ready() is called
-- when they are all there. training: the way back, too.
function sweep.dry_head(model, micros, training, hidden, ready)
  local run = new_run(model, micros, { training = training, scale = 1, lowest = 1 })
  for _, item in ipairs(run.items) do
    item.ctx.dry = true
    run:put("h", run.last, item, hidden(), run.last)
  end
  ready()
  finish(run, pcall(run.head, run, run.items, 0))
  run.carries:clear()
end

-- Adds gradients of scale * sum(nll) to the trained tensors' buffers.
-- micros: list of {ids, positions, starts, labels, rows, longest}; opt: {scale, seed, epoch, total; keep_from (first stage whose tape
-- is kept; default: the lowest trained, or with `recompute` the last), carries (an onn.carries), prefix (an onn.prefix),
-- head_together (micro-batches that the head takes at once), memory (what a net carries on from update to update, net.memory)}.
-- Returns total + the sum of nll in token order (double), and the tokens whose frozen prefix was known.
function sweep.gradient(model, micros, opt)
  opt.training = true
  local run = new_run(model, micros, opt)
  local total = finish(run, pcall(function()
    run:recall()
    run:announce()
    run:forward()
    local sum = run:heads(opt.total or 0)
    if run.back then run:backward() end
    return sum
  end))
  local known = 0
  for _, item in ipairs(run.items) do if item.first > 1 then known = known + item.batch.tokens end end
  return total, known
end

-- Fills the prefix cache for micro-batches whose frozen prefix is not known: one walk through the frozen stages for all of them.
-- opt: {prefix, carries}. Returns the tokens that were computed; none where the cache is full, since they would be computed again.
function sweep.fill(model, micros, opt)
  if opt.prefix.full then return 0 end
  local unknown, tokens = {}, 0
  for _, batch in ipairs(micros) do
    if not opt.prefix:knows(batch) then unknown[#unknown + 1], tokens = batch, tokens + batch.tokens end
  end
  if #unknown == 0 then return 0 end
  local run = new_run(model, unknown, { carries = opt.carries })
  run.prefix, run.last = opt.prefix, run.lowest
  return finish(run, pcall(function()
    if model.ring then
      local visits = {}
      for i = 1, run.lowest - 1 do visits[i] = { at = i, times = #unknown, forward = true } end
      model.ring:schedule(visits)
    end
    run:forward()
    for _, item in ipairs(run.items) do
      run:get("h", run.lowest, item)
      run:release("h", run.lowest, item)
    end
    return tokens
  end))
end

-- The sum of nll in token order, and nothing else: held-out loss. opt: {total, carries, prefix, head_together}.
function sweep.loss(model, micros, opt)
  local run = new_run(model, micros, { scale = 1, carries = opt.carries, prefix = opt.prefix, head_together = opt.head_together })
  return finish(run, pcall(function()
    run:recall()
    run:announce()
    run:forward()
    return run:heads(opt.total or 0)
  end))
end

return sweep
