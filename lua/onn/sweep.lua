-- The two sweeps of training: forward through the stages, loss, and back to the lowest trained stage, one tape per stage.
-- A tape is kept from the forward sweep or rebuilt in the backward sweep (recompute): the same bits either way.
local core = require "onn.core.ops"
local scope = require "onn.scope"
local tape = require "onn.autograd.tape"
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

-- One stage under a fresh tape; returns the tape, the new carry.
local function taped(model, stage, carry, ctx, watch)
  local t = tape.new()
  if watch then t:watch(carry.hidden) end
  local out = scope(function()
    local result = t:run(model.run, model.sizes, stage, carry, ctx)
    return result, t:kept()
  end)
  return t, out
end

-- Adds gradients of scale * sum(nll) to the trained tensors' buffers.
-- batch: {ids, positions, starts, labels, rows, longest}; opt: {scale, recompute, seed, epoch, total}.
-- Returns total + the sum of nll in token order (double).
function sweep.gradient(model, batch, opt)
  local lowest, last = sweep.lowest(model), #model.stages
  local ctx = { dtype = model.dtype, training = true, seed = opt.seed, epoch = opt.epoch, labels = batch.labels, rows = batch.rows, loss_scale = opt.scale }
  local carries, tapes = {}, {}
  local carry = model:carry(batch)
  for i = 1, last do
    local stage, began = model.stages[i], trace.now()
    carries[i] = carry
    if i < lowest or (opt.recompute and i < last) then
      carry = scope(model.run, model.sizes, stage, carry, ctx)
    else
      tapes[i], carry = taped(model, stage, carry, ctx, i > lowest)
    end
    if i < lowest and carries[i].hidden then carries[i].hidden:free() end
    trace.span(stage.name, "forward", began, { tokens = batch.tokens })
  end
  local total = core.running_sum(carry.nll, opt.total or 0)
  carry.last_hidden:free()
  local dy, out = carry.nll, carry.nll -- the head's rule made its gradient on the way forward
  for i = last, lowest, -1 do
    local stage, before, t, began = model.stages[i], carries[i], tapes[i], trace.now()
    local rebuilt = not t
    if not t then
      local again
      t, again = taped(model, stage, before, ctx, i > lowest)
      out:free() -- the forward sweep's; the rebuilt one is what this tape knows
      out = again.hidden
    end
    local dx = scope(function() return t:backward({ [out] = dy }, batch.starts)[before.hidden] end)
    t:release()
    dy:free()
    out:free()
    dy, out, tapes[i] = dx, before.hidden, nil
    trace.span(stage.name, "backward", began, { tokens = batch.tokens, rebuilt = rebuilt })
  end
  if out then out:free() end
  return total
end

-- The sum of nll in token order, and nothing else: held-out loss.
function sweep.loss(model, batch, total)
  return scope(function()
    local carry = model:forward(model:carry(batch), { labels = batch.labels, loss_scale = 1 })
    return core.running_sum(carry.nll, total or 0)
  end)
end

return sweep
