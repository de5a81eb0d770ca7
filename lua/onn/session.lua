-- A training session: what is trained (an adapter, or all weights), its optimizer, and one update after another.
--   local session = Session.new(model, { rank = 8, alpha = 16, targets = "all-linear", lr = 2e-4, total_steps = 100 })
--   for update in data.batches(...) do print(session:update(update).loss) end
local Carries = require "onn.carries"
local changes = require "onn.changes"
local checkpoint = require "onn.checkpoint"
local core = require "onn.core.ops"
local full = require "onn.nn.full"
local lora = require "onn.nn.lora"
local optim = require "onn.optim"
local saved = require "onn.nn.saved"
local schedule = require "onn.schedule"
local model_files = require "onn.model_files"
local sweep = require "onn.sweep"
local tape = require "onn.autograd.tape"
local trace = require "onn.trace"

local Session = {}
Session.__index = Session

Session.defaults = { rank = 8, dropout = 0, targets = "all-linear", lr = 2e-4, schedule = "cosine", warmup = 0.03, clip = 1,
  weight_decay = 0, betas = { 0.9, 0.999 }, seed = 0 }

Session.patience = 5 -- updates in a row that may be skipped for numbers that are not finite

-- opt: Session.defaults' keys, optimizer ("adamw" or "sgd"), momentum, alpha (default 2 * rank), layers (set of block numbers, or nil),
-- full, adapter (directory to go on from), attached (an adapter on the model to go on from), recompute, sweep (more of onn.sweep's options,
-- as a plan has them), carries (onn.carries' options), prefix (an onn.prefix), total_steps. Returns the session, or nil, message, code.
function Session.new(model, opt)
  local given = opt._given or opt
  local self = setmetatable({ model = model, step = 0, skipped = 0, skipped_in_row = 0, opt = {}, prefix = opt.prefix,
    carries = Carries.new(opt.carries or { quota = math.huge }), filled = 0,
    counted = { streamed = model:streamed(), written = 0, read = 0, filled = 0 } }, Session)
  for k, v in pairs(Session.defaults) do self.opt[k] = v end
  for k, v in pairs(opt) do self.opt[k] = v end
  opt = self.opt
  opt.alpha = opt.alpha or 2 * opt.rank
  local message, code
  if opt.full then
    local wanted = opt.layers and {}
    for i, stage in ipairs(model.stages) do
      if wanted and stage.kind == "block" and opt.layers[stage.index] then wanted[i] = true end
    end
    self.params = full.parameters(model, wanted)
    if model.net.train_mode then
      model.net.train_mode(model, wanted)
      self.state = model.net.state(model)
    end
  else
    if opt.attached then self.adapter = opt.attached
    elseif opt.adapter then self.adapter, message, code = lora.load(model, opt.adapter)
    else self.adapter, message, code = lora.create(model, opt) end
    if not self.adapter then return nil, message, code end
    if given.dropout then
      self.adapter.dropout = opt.dropout
      for _, one in ipairs(self.adapter.modules) do one.dropout = opt.dropout end
    end
    self.params = lora.parameters(self.adapter)
    local whole = saved.parameters(model)
    for _, p in ipairs(whole) do self.params[#self.params + 1] = p end
    self.adapter.saved = #whole > 0 and whole or nil
  end
  if opt.carried then self.memory = model.net.memory(model, opt.batch) end
  self.optim = optim[opt.optimizer or "adamw"]
  self.optimizer = self.optim.state()
  self.rate = schedule.new { kind = opt.schedule, warmup = opt.warmup, total = opt.total_steps or 1 }
  return self
end

-- Adds the gradients of all micro-batches up; an error leaves none behind. Returns what onn.sweep returns.
local function accumulate(self, micros, supervised, epoch)
  local opt = self.opt
  local how = { scale = 1 / math.max(supervised, 1), recompute = opt.recompute, seed = opt.seed, epoch = epoch, prefix = self.prefix,
    carries = self.carries, memory = self.memory }
  for k, v in pairs(opt.sweep or {}) do how[k] = v end
  local ok, total, known = pcall(sweep.gradient, self.model, micros, how)
  if ok then return total, known end
  optim.clear(self.params)
  error(total, 0)
end

-- Takes what was read, written and filled since the last update's end out of the next one's count: something else asked for it.
function Session:passed()
  local was, now = self.counted, self.carries:stats()
  now.streamed, now.filled = self.model:streamed(), self.filled
  self.counted = now
  return was, now
end

-- One update from its micro-batches (see onn.batch). Bytes and tokens filled ahead count from the last update's end. The loss is the sum
-- over all supervised tokens by their number in the whole update. Returns {step, loss, lr, grad_norm, tokens, supervised, skipped}; an
-- update whose numbers are not finite changes nothing.
function Session:update(micros, epoch)
  local opt, supervised, tokens = self.opt, 0, 0
  for _, b in ipairs(micros) do supervised, tokens = supervised + b.supervised, tokens + b.tokens end
  if self.memory and self.text ~= epoch then -- it begins anew
    self.memory:reset()
    self.text = epoch
  end
  local total, known = accumulate(self, micros, supervised, epoch)
  local was, now = self:passed()
  local began = trace.now()
  optim.fold(self.params)
  self.step = self.step + 1
  local norm, bad = optim.norm(self.params)
  local loss, lr = total / math.max(supervised, 1), opt.lr * self.rate.at(self.step)
  local skipped = bad > 0 or loss ~= loss or math.abs(loss) == math.huge
  if self.memory then
    if skipped then self.memory:reset() else self.memory:commit() end
  end
  if skipped then
    self.skipped, self.skipped_in_row = self.skipped + 1, self.skipped_in_row + 1
  else
    self.skipped_in_row = 0
    local scale = opt.clip > 0 and norm > opt.clip and opt.clip / norm or 1
    if supervised > 0 then
      self.optim.step(self.params, self.optimizer, opt, lr, scale)
      self.moved = self.moved or (lr >= 1e-6 and norm > 0) -- a smaller step may vanish in f32
    end
  end
  optim.clear(self.params)
  trace.span("optimizer", "optimizer", began, { step = self.step })
  return { step = self.step, loss = loss, lr = lr, grad_norm = norm, tokens = tokens, supervised = supervised, skipped = skipped,
    bytes_streamed = now.streamed - was.streamed, bytes_spilled = now.written - was.written, bytes_fetched = now.read - was.read,
    prefix_tokens = known, filled_tokens = now.filled - was.filled }
end

-- The same updates as iterate() gives (update, cursor), read ahead so that the frozen stages are walked through once for as many of
-- them as `tokens` allows, at least for one. ram: the carries' quota meanwhile (nil: as ever). Without a prefix cache: as they are.
function Session:ahead(iterate, tokens, ram)
  if not self.prefix then return iterate end
  local queue = {}
  return function()
    if #queue == 0 then
      local micros, n, update, cursor = {}, 0
      repeat
        update, cursor = iterate()
        if update then
          queue[#queue + 1] = { update, cursor }
          for _, b in ipairs(update) do micros[#micros + 1], n = b, n + b.tokens end
        end
      until not update or n + n / #queue > tokens
      self.filled = self.filled + self.carries:with_quota(ram or self.carries.quota, function()
        return sweep.fill(self.model, micros, { prefix = self.prefix, carries = self.carries })
      end)
    end
    local first = table.remove(queue, 1)
    if first then return first[1], first[2] end
  end
end

-- What is trained: the parameters, and running statistics that training moves.
local function kept(self)
  local list = {}
  for _, p in ipairs(self.params) do list[#list + 1] = p end
  for _, s in ipairs(self.state or {}) do list[#list + 1] = s end
  return list
end

-- The first trained tensor with values that are not finite, and how many; nil if all are.
function Session:not_finite()
  for _, p in ipairs(kept(self)) do
    local bad = p.value:dtype() ~= "i64" and select(2, core.total(p.value, true)) or 0
    if bad > 0 then return p.name, bad end
  end
end

-- Notes what all tensors are, for verify().
function Session:watch() self.before = changes.record(self.model, self.params) end

-- Have the trained stages changed since watch(), and nothing else? Returns true, or nil and what is wrong.
function Session:verify()
  local ok, message = changes.check(self.before, changes.record(self.model, self.params))
  if not ok and message:find "nothing in it changed" and not self.moved then return true end
  return ok, message
end

-- Writes the trained adapter (PEFT's files), or with `full` the whole model directory in f32, unless a value in them is not finite.
-- Returns true, or nil, message, code.
function Session:save(directory)
  local name, bad = self:not_finite()
  if name then return nil, ("'%s' holds %d values that are not finite: it is not saved"):format(name, bad), "format" end
  if self.adapter then return lora.save(self.model, self.adapter, directory) end
  local values = {}
  for _, p in ipairs(kept(self)) do
    values[p.name] = p.transposed and function(rows, first) return full.stored(p, p.value:narrow(2, first + 1, rows:size(1))) end or p.value
  end
  return model_files.write(self.model, directory, values, "f32")
end

-- What a checkpoint holds the values of: these, and the state that is carried on.
local function held(self)
  local list = kept(self)
  for _, one in ipairs(self.memory and self.memory:saved() or {}) do list[#list + 1] = one end
  return list
end

-- `state` is whatever the loop needs to go on (epoch, cursor, ...). keep: how many of this run's checkpoints stay; those of
-- self.replaces, a list of steps, go. Returns the checkpoint's path, or nil, message, code.
function Session:checkpoint(out, state, keep)
  state.step, state.skipped, state.skipped_in_row = self.step, self.skipped, self.skipped_in_row
  local path, message, code = checkpoint.save(out, self.step, function(directory) return self:save(directory) end, held(self),
    self.optimizer, state)
  if path and keep then
    checkpoint.prune(out, keep, self.step, self.replaces)
    self.replaces = nil
  end
  return path, message, code
end

-- Takes up a checkpoint; returns its state, or nil, message, code.
function Session:resume(path)
  local state, message, code = checkpoint.restore(path, held(self), self.optimizer)
  if not state then return nil, message, code end
  self.step, self.skipped, self.skipped_in_row = state.step, state.skipped or 0, state.skipped_in_row or 0
  self.text = state.epoch
  return state
end

-- Frees everything the session holds, the adapter included unless `keep` is true: then it stays on the model.
function Session:close(keep)
  self.carries:clear()
  if self.memory then self.memory:free() end
  for _, p in ipairs(self.params) do tape.forget(p.shadow or p.value) end
  if self.adapter and not keep then lora.remove(self.model, self.adapter) end
  for _, p in ipairs(self.params) do
    for _, g in ipairs(p.gradients) do g:free() end
    for _, moment in ipairs { "m", "v" } do
      if self.optimizer[moment][p.name] then self.optimizer[moment][p.name]:free() end
    end
  end
end

return Session
