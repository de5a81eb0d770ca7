-- A training session: what is trained (an adapter, or all weights), its optimizer, and one update after another.
--   local session = Session.new(model, { rank = 8, alpha = 16, targets = "all-linear", lr = 2e-4, total_steps = 100 })
--   for update in data.batches(...) do print(session:update(update).loss) end
local checkpoint = require "onn.checkpoint"
local core = require "onn.core.ops"
local full = require "onn.nn.full"
local lora = require "onn.nn.lora"
local optim = require "onn.optim"
local schedule = require "onn.schedule"
local stores = require "onn.core.store"
local sweep = require "onn.sweep"

local Session = {}
Session.__index = Session

Session.defaults = { rank = 8, dropout = 0, targets = "all-linear", lr = 2e-4, schedule = "cosine", warmup = 0.03, clip = 1,
  weight_decay = 0, betas = { 0.9, 0.999 }, seed = 0 }

Session.patience = 5 -- updates in a row that may be skipped for numbers that are not finite

-- opt: Session.defaults' keys, alpha (default 2 * rank), layers (set of block numbers, or nil), full, adapter (directory to go on
-- from), recompute, total_steps. Returns the session, or nil, message, code.
function Session.new(model, opt)
  local self = setmetatable({ model = model, step = 0, skipped = 0, skipped_in_row = 0, opt = {} }, Session)
  for k, v in pairs(Session.defaults) do self.opt[k] = v end
  for k, v in pairs(opt) do self.opt[k] = v end
  opt = self.opt
  opt.alpha = opt.alpha or 2 * opt.rank
  local message, code
  if opt.full then
    self.params = full.parameters(model)
  else
    if opt.adapter then self.adapter, message, code = lora.load(model, opt.adapter)
    else self.adapter, message, code = lora.create(model, opt) end
    if not self.adapter then return nil, message, code end
    self.adapter.dropout = opt.dropout
    for _, one in ipairs(self.adapter.modules) do one.dropout = opt.dropout end
    self.params = lora.parameters(self.adapter)
  end
  self.optimizer = optim.adamw.state()
  self.rate = schedule.new { kind = opt.schedule, warmup = opt.warmup, total = opt.total_steps or 1 }
  return self
end

-- One update from its micro-batches (see onn.batch). The loss is the sum over all supervised tokens by their number in the whole
-- update. Returns {step, loss, lr, grad_norm, tokens, supervised, skipped}; an update whose numbers are not finite changes nothing.
function Session:update(micros, epoch)
  local opt, supervised, tokens = self.opt, 0, 0
  for _, b in ipairs(micros) do supervised, tokens = supervised + b.supervised, tokens + b.tokens end
  local total = 0
  for _, b in ipairs(micros) do
    total = sweep.gradient(self.model, b, { scale = 1 / math.max(supervised, 1), recompute = opt.recompute, seed = opt.seed,
      epoch = epoch, total = total })
  end
  optim.fold(self.params)
  self.step = self.step + 1
  local norm, bad = optim.norm(self.params)
  local loss, lr = total / math.max(supervised, 1), opt.lr * self.rate.at(self.step)
  local skipped = bad > 0 or loss ~= loss or math.abs(loss) == math.huge or supervised == 0
  if skipped then
    self.skipped, self.skipped_in_row = self.skipped + 1, self.skipped_in_row + 1
  else
    self.skipped_in_row = 0
    local scale = opt.clip > 0 and norm > opt.clip and opt.clip / norm or 1
    optim.adamw.step(self.params, self.optimizer, opt, lr, scale)
  end
  optim.clear(self.params)
  return { step = self.step, loss = loss, lr = lr, grad_norm = norm, tokens = tokens, supervised = supervised, skipped = skipped }
end

-- The first trained tensor with values that are not finite, and how many; nil if all are.
function Session:not_finite()
  for _, p in ipairs(self.params) do
    local _, bad = core.total(p.value, true)
    if bad > 0 then return p.name, bad end
  end
end

-- Writes the trained adapter (PEFT's files), or the trained weights as model.safetensors, unless a value in them is not finite.
-- Returns true, or nil, message, code.
function Session:save(directory)
  local name, bad = self:not_finite()
  if name then return nil, ("'%s' holds %d values that are not finite: it is not saved"):format(name, bad), "format" end
  if self.adapter then return lora.save(self.model, self.adapter, directory) end
  local values = {}
  for _, p in ipairs(self.params) do values[p.name] = p.value end
  return stores.write(directory .. "/model.safetensors", values, { format = "pt" })
end

-- `state` is whatever the loop needs to go on (epoch, cursor, ...). keep: how many of this run's checkpoints stay; those of
-- self.replaces, a list of steps, go. Returns the checkpoint's path, or nil, message, code.
function Session:checkpoint(out, state, keep)
  state.step, state.skipped, state.skipped_in_row = self.step, self.skipped, self.skipped_in_row
  local path, message, code = checkpoint.save(out, self.step, function(directory) return self:save(directory) end, self.params,
    self.optimizer, state)
  if path and keep then
    checkpoint.prune(out, keep, self.step, self.replaces)
    self.replaces = nil
  end
  return path, message, code
end

-- Takes up a checkpoint; returns its state, or nil, message, code.
function Session:resume(path)
  local state, message, code = checkpoint.restore(path, self.params, self.optimizer)
  if not state then return nil, message, code end
  self.step, self.skipped, self.skipped_in_row = state.step, state.skipped or 0, state.skipped_in_row or 0
  return state
end

-- Takes the adapter off the model and frees everything the session holds.
function Session:close()
  if self.adapter then lora.remove(self.model, self.adapter) end
  for _, p in ipairs(self.params) do
    for _, g in ipairs(p.gradients) do g:free() end
    for _, moment in ipairs { "m", "v" } do
      if self.optimizer[moment][p.name] then self.optimizer[moment][p.name]:free() end
    end
  end
end

return Session
